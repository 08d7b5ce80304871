//! The webhook's own certificate: made, shared by replicas, renewed, and known to the API server, which here is a server
//! that behaves like one for these calls, refuses what the roles do not allow, and enforces resource versions.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rcgen::SanType;
use serde_json::{Value, json};
use sidecar_tests::world::{process::Running, wait};
use sidecar_userspace::kubernetes::{Api, taint};

use super::webhook::{Webhook, certify, here, program};
use crate::tls::authority::Authority;

const LIMIT: Duration = Duration::from_secs(30);
const CONFIGURATION: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/inject.sidecar.internal";
const SECRET: &str = "/api/v1/namespaces/sidecar-system/secrets/sidecar-inject-tls";
const NODE: &str = "/api/v1/nodes/node-1";

/// An API server and the directory of a service account.
struct Cluster {
    server: Running,
    port: u16,
    directory: tempfile::TempDir,
    answers: usize,
}

impl Cluster {
    fn start(mut objects: Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let authority = Authority::new();
        certify(
            &authority,
            at,
            "server",
            SanType::IpAddress(IpAddr::from(Ipv4Addr::LOCALHOST)),
        );
        fs::write(at.join("ca.crt"), &authority.root_pem).unwrap();
        fs::write(at.join("token"), "first\n").unwrap();
        fs::write(at.join("namespace"), "sidecar-system").unwrap();
        let webhook = |name: &str| {
            json!({
                "name": format!("{name}.inject.sidecar.internal"),
                "clientConfig": { "service": { "name": "sidecar-inject", "namespace": "sidecar-system" } },
            })
        };
        objects[CONFIGURATION] = json!({
            "metadata": { "name": "inject.sidecar.internal", "resourceVersion": "1" },
            "webhooks": [webhook("namespace"), webhook("pod")],
        });
        fs::write(at.join("objects.json"), objects.to_string()).unwrap();
        let mut command = Command::new("/usr/bin/python3");
        command.arg(here("api_server.py")).arg(at);
        let mut server = Running::start("api", at, &mut command).unwrap();
        let port = server.line("").unwrap().parse().unwrap();
        Self {
            server,
            port,
            directory,
            answers: 1,
        }
    }

    fn at(&self) -> &Path {
        self.directory.path()
    }

    fn webhook(&self, name: &str, arguments: &[&str]) -> Webhook {
        let mut command = program();
        command
            .env("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            .env("KUBERNETES_SERVICE_PORT", self.port.to_string())
            .args([
                "inject",
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--service-account",
            ])
            .arg(self.at())
            .args(arguments);
        Webhook::start(name, self.at(), &mut command)
    }

    fn order(&mut self, order: &str, path: &str) -> Value {
        self.server
            .write(format!("{order} {path}\n").as_bytes())
            .unwrap();
        self.answers += 1;
        let line = wait::until("an answer", LIMIT, || {
            let said = self.server.stdout()?;
            let lines: Vec<&str> = said
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'))
                .collect();
            Ok(lines.get(self.answers - 1).map(|line| (*line).to_owned()))
        });
        serde_json::from_str(&line.unwrap()).unwrap()
    }

    fn object(&mut self, path: &str) -> Value {
        self.order("show", path)
    }

    /// The roots that an API server would believe: `None` while the two webhooks have none.
    fn roots(&mut self) -> Option<String> {
        let configuration = self.object(CONFIGURATION);
        let webhooks = configuration["webhooks"].as_array().unwrap();
        let bundles: Vec<Option<&str>> = webhooks
            .iter()
            .map(|webhook| webhook["clientConfig"]["caBundle"].as_str())
            .collect();
        assert_eq!(bundles.len(), 2);
        assert_eq!(bundles[0], bundles[1]);
        bundles[0].map(decoded)
    }

    fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.at().join("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

fn decoded(text: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    let output = Command::new("base64")
        .arg("-d")
        .arg(file.path())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn is_ready(cluster: &mut Cluster, webhook: &Webhook) -> bool {
    let Some(roots) = cluster.roots() else {
        return false;
    };
    webhook
        .get(&roots, "/healthz/ready")
        .is_ok_and(|(status, _)| status == 200)
}

fn until_ready(cluster: &mut Cluster, webhook: &Webhook) {
    let ready = wait::until_true("the webhook to be ready", LIMIT, || {
        Ok(is_ready(cluster, webhook))
    });
    ready.unwrap_or_else(|error| panic!("{error}\n{}\n{:?}", webhook.running, cluster.log()));
}

#[test]
fn replicas_share_one_certificate() {
    let mut cluster = Cluster::start(json!({}));
    let replicas: Vec<Webhook> = (0..3)
        .map(|number| cluster.webhook(&format!("replica-{number}"), &[]))
        .collect();
    for replica in &replicas {
        until_ready(&mut cluster, replica);
    }
    let log = cluster.log();
    let count = |line: &str| log.iter().filter(|each| each.as_str() == line).count();
    // One of them made it; those that lost the race read it.
    assert_eq!(
        count("POST /api/v1/namespaces/sidecar-system/secrets 201"),
        1,
        "{log:#?}"
    );
    assert_eq!(
        log.iter().filter(|line| line.starts_with("PUT")).count(),
        0,
        "{log:#?}"
    );
    assert_eq!(count(&format!("PATCH {CONFIGURATION} 200")), 1, "{log:#?}");
    // Nothing beyond the roles was tried.
    assert!(
        !log.iter()
            .any(|line| line.ends_with("403") || line.ends_with("401")),
        "{log:#?}"
    );
    let secret = cluster.object(SECRET);
    assert_eq!(secret["type"], "Opaque");
    // One that starts later takes what is there.
    let late = cluster.webhook("late", &[]);
    until_ready(&mut cluster, &late);
    assert_eq!(cluster.object(SECRET), secret);
    let stopped = late.running.stop(Duration::from_secs(20)).unwrap();
    assert_eq!(stopped.code(), 0, "{stopped:?}");
}

/// Certificates of a second, so that certificate and authority are renewed while API servers ask all the time.
#[test]
fn renewals_go_unnoticed() {
    let mut cluster = Cluster::start(json!({ SECRET: {
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "sidecar-inject-tls", "resourceVersion": "7" }
    } }));
    let arguments = ["--certificate-lifetime", "2s"];
    let replicas = [
        cluster.webhook("a", &arguments),
        cluster.webhook("b", &arguments),
    ];
    for replica in &replicas {
        until_ready(&mut cluster, replica);
    }
    let (mut asked, mut certificates, mut authorities) = (0, Vec::new(), Vec::new());
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(25) {
        for replica in &replicas {
            let roots = cluster.roots().unwrap();
            let answer = replica.get(&roots, "/healthz/ready");
            assert!(
                answer.as_ref().is_ok_and(|(status, _)| *status == 200),
                "{answer:?} after {asked}\n{}",
                replica.running
            );
            asked += 1;
        }
        let data = cluster.object(SECRET)["data"].clone();
        for (key, seen) in [("tls.crt", &mut certificates), ("ca.key", &mut authorities)] {
            if !seen.contains(&data[key]) {
                seen.push(data[key].clone());
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
    println!(
        "{asked} requests, {} certificates, {} authorities",
        certificates.len(),
        authorities.len()
    );
    assert!(certificates.len() >= 10, "{}", certificates.len());
    assert!(authorities.len() >= 2, "{}", authorities.len());
    // The token is read again, and a bundle that somebody takes away comes back.
    fs::write(cluster.at().join("token"), "second").unwrap();
    cluster.order("reset", CONFIGURATION);
    for replica in &replicas {
        until_ready(&mut cluster, replica);
    }
}

/// A Secret with rubbish in it is replaced, and an API server that is away takes nothing away.
#[test]
fn damage_and_absence() {
    let rubbish = json!({ "data": { "tls.crt": "!", "tls.key": "" }, "metadata": { "name": "sidecar-inject-tls", "resourceVersion": "7" } });
    let mut cluster = Cluster::start(json!({ SECRET: rubbish }));
    let webhook = cluster.webhook("webhook", &["--certificate-lifetime", "1h"]);
    until_ready(&mut cluster, &webhook);
    let roots = cluster.roots().unwrap();
    let (status, metrics) = webhook.get(&roots, "/metrics").unwrap();
    let expiry = metrics
        .lines()
        .find_map(|line| line.strip_prefix("sidecar_inject_certificate_expiry_seconds "));
    assert!(
        status == 200 && expiry.is_some_and(|at| at.parse::<f64>().unwrap() > 1.0e9),
        "{metrics}"
    );
    drop(cluster);
    assert_eq!(webhook.get(&roots, "/healthz/ready").unwrap().0, 200);
}

/// Without rights the webhook waits, and says what it lacks.
#[test]
fn without_rights_it_says_so() {
    let cluster = Cluster::start(json!({}));
    fs::write(cluster.at().join("namespace"), "elsewhere").unwrap();
    let webhook = cluster.webhook("webhook", &[]);
    let says =
        "the service account cannot GET /api/v1/namespaces/elsewhere/secrets/sidecar-inject-tls";
    wait::until_true("a warning", LIMIT, || {
        Ok(webhook.running.stderr()?.contains(says))
    })
    .unwrap();
}

/// Of the agent: the taint goes, others stay, also if somebody changes the node meanwhile.
#[test]
fn a_nodes_taint_is_taken_away() {
    let other = json!({ "key": "dedicated", "value": "db", "effect": "NoExecute" });
    let ours = json!({ "key": taint::TAINT, "effect": "NoSchedule" });
    let mut cluster = Cluster::start(json!({ NODE: {
        "metadata": { "name": "node-1", "resourceVersion": "5" }, "spec": { "podCIDR": "10.1.0.0/24", "taints": [ours, other] }
    } }));
    let api = Api::at(&format!("https://127.0.0.1:{}", cluster.port), cluster.at()).unwrap();
    cluster.order("race", NODE);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(taint::remove(&api, "node-1"));
    let node = cluster.object(NODE);
    assert_eq!(
        node["spec"],
        json!({ "podCIDR": "10.1.0.0/24", "taints": [other] })
    );
    runtime.block_on(taint::remove(&api, "node-1"));
    let log = cluster.log();
    let patches: Vec<_> = log
        .iter()
        .filter(|line| line.starts_with("PATCH"))
        .collect();
    let expected = [409, 200].map(|status| format!("PATCH {NODE} {status}"));
    assert_eq!(patches, [&expected[0], &expected[1]], "{log:#?}");
}
