//! The example of deploy/kubernetes/examples/shop, end to end: unprivileged sidecars, mutual TLS, policy, redirect.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sidecar_tests::{
    manifests,
    world::{Running, World, programs::packaged, wait},
};

use crate::{
    SOON,
    mesh::{AGENT, Mesh, sidecar_of},
    node::{expect_without_privilege, status},
};

/// NET_ADMIN, SYS_ADMIN and SYS_PTRACE of linux/capability.h.
const OF_AGENT: u64 = 1 << 12 | 1 << 21 | 1 << 19;
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
/// What orders answers, and nobody on the way may read.
const PAGE: &str = "two orders\n";
const ORDERS: &str = "http://orders:8080/orders";
/// What is asked for without a sidecar, and refused.
const PLAINTEXT: &str = "/plaintext";

#[test]
fn the_example_runs_behind_unprivileged_sidecars() {
    World::play(|world| {
        let mesh = Mesh::new(world)?;
        let agent = mesh.node.pid(AGENT)?;
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            let held = u64::from_str_radix(&status(agent, set)?, 16)?;
            ensure!(held == OF_AGENT, "the agent's {set} {held:x}");
        }

        let shop = manifests::render("examples/shop")?;
        for pod in ["orders", "web"] {
            mesh.play(pod, &of(&shop, pod)?)?;
        }
        for pod in ["orders", "web"] {
            mesh.wait_for(pod)?;
            expect_without_privilege(mesh.node.pid(&sidecar_of(pod))?)?;
        }
        let capture = Capture::start(&mesh)?;

        let page = curl(&mesh, &["--fail", ORDERS])?;
        ensure!(page == PAGE, "{page}");
        let status = ["--output", "/dev/null", "--write-out", "%{http_code}"];
        for (refused, arguments) in [
            ("another path", vec!["http://orders:8080/invoices"]),
            ("another method", vec!["--request", "DELETE", ORDERS]),
        ] {
            let code = curl(&mesh, &[&status[..], &arguments].concat())?;
            ensure!(code == "403", "{refused}: {code}");
        }
        // Enough of it for the kernel half to see what is worth it.
        let many = vec![ORDERS; 40];
        curl(&mesh, &[&["--fail"][..], &many].concat())?;

        said_by_orders(&mesh)?;
        plaintext_is_refused(&mesh)?;
        capture.expect_none_of(&[PAGE.trim(), "GET /orders"], PLAINTEXT)?;
        for (pod, event) in [
            ("web", "steered"),
            ("orders", "inbound"),
            ("web", "redirected"),
            ("orders", "redirected"),
        ] {
            ensure!(mesh.events(pod, event)? > 0, "no {event} of {pod}");
        }

        // Whoever takes the agent away takes nothing else away.
        mesh.node.podman(&["kill", AGENT])?;
        ensure!(
            curl(&mesh, &["--fail", ORDERS])? == PAGE,
            "without an agent"
        );
        mesh.node.podman(&["start", AGENT])?;
        mesh.wait_for_agent()?;
        wait::until_true("the sidecars to come back", SOON, || {
            Ok(mesh.enrolled()? == 2)
        })?;
        ensure!(
            curl(&mesh, &["--fail", ORDERS])? == PAGE,
            "with another agent"
        );

        mesh.remove("web")?;
        mesh.remove("orders")?;
        ensure!(mesh.enrolled()? == 0, "pods are left");
        Ok(())
    });
}

/// What belongs to one of the example's workloads.
fn of(shop: &[Value], name: &str) -> Result<Vec<Value>> {
    let mut objects = vec![manifests::find(shop, "ConfigMap", "sidecar")?.clone()];
    objects.extend(manifests::find(shop, "ConfigMap", name).ok().cloned());
    objects.push(manifests::find(shop, "Deployment", name)?.clone());
    Ok(objects)
}

/// What curl prints in the application's container of web.
fn curl(mesh: &Mesh<'_>, arguments: &[&str]) -> Result<String> {
    let command = [
        &["curl", "--silent", "--show-error", "--max-time", "20"],
        arguments,
    ]
    .concat();
    let asked = mesh.node.exec("web-web", &command)?.success();
    let asked = asked.with_context(|| {
        ["web-sidecar", "orders-sidecar", "orders-orders"]
            .map(|container| mesh.node.last_words(container))
            .join("\n")
    })?;
    Ok(asked.stdout)
}

/// Who called is known, and that no rule let in what was refused.
fn said_by_orders(mesh: &Mesh<'_>) -> Result<()> {
    let log = mesh.node.logs(&sidecar_of("orders"))?;
    let lines: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let with = |status: u64| lines.iter().find(move |line| line["status"] == status);
    let (served, refused) = (with(200), with(403));
    let served = served.with_context(|| format!("nothing was served: {log}"))?;
    ensure!(
        served["client_identity"] == WEB && served["client_tls"] == "TLSv1.3",
        "{served}"
    );
    let refused = refused.with_context(|| format!("nothing was refused: {log}"))?;
    ensure!(
        refused["client_identity"] == WEB && refused["policy"] == "default",
        "{refused}"
    );
    Ok(())
}

/// Who is in no mesh gets no answer, not even a refusal that it could read.
fn plaintext_is_refused(mesh: &Mesh<'_>) -> Result<()> {
    let address = mesh.address("orders")?;
    let answer = mesh.get(address, 8080, PLAINTEXT);
    ensure!(answer.is_err(), "plaintext was answered: {answer:?}");
    Ok(())
}

/// What is on the pods' network.
struct Capture {
    running: Running,
    file: std::path::PathBuf,
}

impl Capture {
    fn start(mesh: &Mesh<'_>) -> Result<Self> {
        let world = mesh.node.world();
        let file = world.directory().join("link.pcap");
        let mut command = world.command_beside("tcpdump", &packaged("tcpdump", "tcpdump")?)?;
        command.args(["-i", "any", "-Z", "root", "-U", "--immediate-mode"]);
        command.args(["-s", "0", "-w"]);
        command.arg(&file).args(["tcp", "port", "8080"]);
        let running = Running::start("tcpdump", world.directory(), &mut command)?;
        wait::until_true("tcpdump to listen", SOON, || {
            Ok(running.stderr()?.contains("listening on"))
        })?;
        Ok(Self { running, file })
    }

    /// `last` is what went over the link in plaintext at the end: once it is seen, so is all before it.
    fn expect_none_of(self, secrets: &[&str], last: &str) -> Result<()> {
        let shows = |seen: &[u8], text: &str| {
            let text = text.as_bytes();
            seen.windows(text.len()).any(|window| window == text)
        };
        wait::until_true("tcpdump to see the plaintext", SOON, || {
            Ok(shows(&fs::read(&self.file)?, last))
        })?;
        self.running.stop(SOON)?;
        let seen = fs::read(&self.file)?;
        for secret in secrets {
            ensure!(!shows(&seen, secret), "«{secret}» went over the link");
        }
        Ok(())
    }
}
