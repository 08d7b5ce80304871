//! AdmissionReviews as API servers send them, and the answers to them, over TLS. `UPDATE_GOLDEN=1` writes the answers anew:
//! look at them.

use std::{fs, path::Path, process::Command};

use rcgen::SanType;
use serde_json::{Value, json};
use sidecar_tests::pod_security::violations;

use super::{
    offline::{as_json, injected},
    webhook::{NAME, Webhook, certify, here, program},
};
use crate::tls::authority::Authority;

/// A webhook with a certificate from elsewhere.
struct World {
    webhook: Webhook,
    authority: Authority,
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let at = directory.path();
        certify(
            &authority,
            at,
            "tls",
            SanType::DnsName(NAME.try_into().unwrap()),
        );
        let mut command = program();
        command.args(["inject", "serve", "--listen", "127.0.0.1:0"]);
        command
            .arg("--tls-cert")
            .arg(at.join("tls.crt"))
            .arg("--tls-key")
            .arg(at.join("tls.key"));
        let webhook = Webhook::start("webhook", at, &mut command);
        let world = Self {
            webhook,
            authority,
            directory,
        };
        world.until_ready();
        world
    }

    fn until_ready(&self) {
        use sidecar_tests::world::wait;
        let ready = || {
            Ok(self
                .get("/healthz/ready")
                .is_ok_and(|(status, _)| status == 200))
        };
        wait::until_true(
            "the webhook to be ready",
            std::time::Duration::from_secs(30),
            ready,
        )
        .unwrap();
    }

    fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        self.webhook.get(&self.authority.root_pem, path)
    }

    fn post(&self, path: &str, body: &[u8]) -> (u16, String) {
        self.webhook
            .post(&self.authority.root_pem, path, body)
            .unwrap()
    }

    /// The response to a review, its patch in the clear.
    fn review(&self, path: &str, body: &[u8]) -> Value {
        let (status, answer) = self.post(path, body);
        assert_eq!(status, 200, "{answer}");
        let mut answer: Value = serde_json::from_str(&answer).unwrap();
        if let Some(patch) = answer["response"]["patch"].as_str() {
            answer["response"]["patch"] = decoded(patch);
        }
        answer
    }
}

/// By the base64 of coreutils.
fn decoded(text: &str) -> Value {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("coded");
    fs::write(&path, text).unwrap();
    let output = Command::new("base64")
        .arg("-d")
        .arg(&path)
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

fn patched(mut object: Value, patch: &Value) -> Value {
    let patch: json_patch::Patch = serde_json::from_value(patch.clone()).unwrap();
    json_patch::patch(&mut object, &patch).unwrap();
    object
}

#[test]
fn reviews_are_answered_as_they_were() {
    let world = World::new();
    let mut seen = 0;
    for entry in fs::read_dir(here("golden")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(case) = name.strip_suffix(".request.json") else {
            continue;
        };
        seen += 1;
        let request = fs::read(&path).unwrap();
        let answer = world.review("/inject/namespace", &request);
        // The version moves on.
        let text = format!("{answer:#}\n").replace(env!("CARGO_PKG_VERSION"), "VERSION");
        let golden = here(&format!("golden/{case}.response.json"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &text).unwrap();
        }
        let committed = fs::read_to_string(&golden).unwrap_or_default();
        assert!(committed == text, "{case}: {text}");
        again(&world, &request, &answer);
    }
    assert_eq!(seen, 8);
    let (_, metrics) = world.get("/metrics").unwrap();
    // Three pods and one whose sidecar moved; each of these again.
    for line in [
        "{verdict=\"injected\"} 4",
        "{verdict=\"unchanged\"} 5",
        "{verdict=\"left\"} 1",
        "{verdict=\"refused\"} 2",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

/// A pod that has got its sidecar gets nothing more, and only what `restricted` allows was put in.
fn again(world: &World, request: &[u8], answer: &Value) {
    let patch = &answer["response"]["patch"];
    if patch.is_null() {
        return;
    }
    let mut review: Value = serde_json::from_slice(request).unwrap();
    let object = patched(review["request"]["object"].clone(), patch);
    let ours = |found: &String| found.contains("\"sidecar\"") || found.contains("volume \"sidecar");
    let injected_here = patch[0]["op"] == "add";
    let violations: Vec<String> = violations(&object["spec"])
        .into_iter()
        .filter(ours)
        .collect();
    assert!(!injected_here || violations.is_empty(), "{violations:?}");
    review["request"]["object"] = object;
    let answer = world.review("/inject/namespace", review.to_string().as_bytes());
    assert_eq!(answer["response"]["patch"], Value::Null, "{answer:#}");
    assert_eq!(answer["response"]["allowed"], true);
}

/// A file that was injected offline and a pod that the webhook injected are the same.
#[test]
fn offline_and_webhook_agree() {
    let world = World::new();
    let template = |object: &Value| match object["kind"].as_str() {
        Some("CronJob") => object["spec"]["jobTemplate"]["spec"]["template"].clone(),
        Some("Pod") => object.clone(),
        _ => object["spec"]["template"].clone(),
    };
    let mut compared = 0;
    for name in ["deployment", "job", "statefulset", "others"] {
        let (before, after) = (offline_json(name, false), offline_json(name, true));
        for (before, after) in before.iter().zip(&after) {
            let mut pod = template(before);
            if pod.is_null() {
                continue;
            }
            compared += 1;
            // As their controllers make them.
            pod["metadata"]["ownerReferences"] = json!([{ "kind": "StatefulSet", "name": before["metadata"]["name"], "controller": true }]);
            let review = json!({
                "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                "request": {
                    "uid": "1", "operation": "CREATE", "kind": { "group": "", "version": "v1", "kind": "Pod" },
                    "namespace": "shop", "object": pod,
                },
            });
            let answer = world.review("/inject/namespace", review.to_string().as_bytes());
            let pod = patched(pod, &answer["response"]["patch"]);
            assert_eq!(pod["spec"], template(after)["spec"], "{name}");
            assert_eq!(
                pod["metadata"]["annotations"],
                template(after)["metadata"]["annotations"]
            );
        }
    }
    assert_eq!(compared, 7);
}

/// The objects of a manifest, those of lists one by one.
fn offline_json(name: &str, inject: bool) -> Vec<Value> {
    let path = here(&format!("manifests/{name}.yaml"))
        .display()
        .to_string();
    let text = match inject {
        true => injected(&["--output", "json", "-f", &path]),
        false => as_json(&path),
    };
    let value: Value = serde_json::from_str(&text).unwrap();
    match value["items"].as_array() {
        Some(items) => items.iter().flat_map(flat).collect(),
        None => vec![value],
    }
}

fn flat(value: &Value) -> Vec<Value> {
    match value["items"].as_array() {
        Some(items) => items.clone(),
        None => vec![value.clone()],
    }
}

#[test]
fn what_is_no_review_is_told_so() {
    let world = World::new();
    for (path, body, status, says) in [
        ("/inject/pod", "{", 400, "no AdmissionReview"),
        (
            "/inject/pod",
            "{\"kind\":\"AdmissionReview\"}",
            400,
            "admission.k8s.io/v1",
        ),
        ("/inject/pod", "", 400, "no AdmissionReview"),
        ("/inject", "{}", 405, "only GET"),
        ("/healthz", "{}", 405, "only GET"),
    ] {
        let (found, said) = world.post(path, body.as_bytes());
        assert!(
            found == status && said.contains(says),
            "{path} {body}: {found} {said}"
        );
    }
    assert_eq!(world.get("/inject/pod").unwrap().0, 405);
    assert_eq!(world.get("/elsewhere").unwrap().0, 404);
    let (status, said) = world.post("/inject/pod", &vec![b' '; 5 << 20]);
    assert!(status == 413 && said.contains("4194304"), "{status} {said}");
    // Deep nesting is no way to the stack's end.
    let (status, _) = world.post("/inject/pod", "[".repeat(1 << 20).as_bytes());
    assert_eq!(status, 400);
    // Whoever speaks no TLS gets nothing, and others do.
    let mut plain = std::net::TcpStream::connect(("127.0.0.1", world.webhook.port)).unwrap();
    std::io::Write::write_all(&mut plain, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(world.get("/healthz").unwrap(), (200, "live\n".to_owned()));
}

/// Somebody else renews it: the next connection has the new one, without a restart.
#[test]
fn a_certificate_from_elsewhere_is_renewed() {
    let world = World::new();
    let at: &Path = world.directory.path();
    let renewed = Authority::new();
    certify(
        &renewed,
        at,
        "tls",
        SanType::DnsName(NAME.try_into().unwrap()),
    );
    let ready = || {
        let answer = world.webhook.get(&renewed.root_pem, "/healthz/ready");
        Ok(answer.is_ok_and(|(status, _)| status == 200))
    };
    sidecar_tests::world::wait::until_true(
        "the new certificate",
        std::time::Duration::from_secs(30),
        ready,
    )
    .unwrap();
    // A damaged one changes nothing.
    fs::write(at.join("tls.crt"), "nothing").unwrap();
    std::thread::sleep(std::time::Duration::from_secs(11));
    assert!(ready().unwrap());
    let ended = world
        .webhook
        .running
        .stop(std::time::Duration::from_secs(20))
        .unwrap();
    assert_eq!(ended.code(), 0, "{ended:?}");
}
