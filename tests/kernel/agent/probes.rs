//! Probes of the kubelet under strict mutual TLS and a policy that lets nobody in: known by its cgroup, and by nothing else.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use sidecar_tests::world::{
    Agent, Pod, Running, Settings, Workload, World, agent::PROXY_UID, programs, wait,
};

use super::{SOON, connects};
use crate::{mesh, peers};

/// A node with an agent that knows its kubelet, and a pod that lets nobody in but who has an identity.
struct Stage<'w> {
    /// Its processes are the node's: not enrolled, in a network from which pods are reached.
    node: Workload<'w>,
    kubelet: PathBuf,
    others: PathBuf,
    agent: Agent<'w>,
    strict: Pod<'w>,
    /// What the pod's application serves.
    files: tempfile::TempDir,
}

impl<'w> Stage<'w> {
    fn new(world: &'w World) -> Result<Self> {
        let node = world.workload("node")?;
        let kubelet = node.cgroup().join("kubelet.service");
        let others = node.cgroup().join("others.service");
        fs::create_dir(&kubelet)?;
        fs::create_dir(&others)?;
        let option = ["--kubelet-cgroup", &kubelet.to_string_lossy()];
        let agent = Agent::start_with(world, &option)?;
        let authority = mesh::authority(&node)?;
        // The sidecar has no privilege, and keys are read by their owner only.
        let owner = Some(PROXY_UID.parse()?);
        chown(&authority, owner, owner)?;
        for entry in fs::read_dir(&authority)? {
            chown(entry?.path(), owner, owner)?;
        }
        let settings = mesh::identity(&authority, "ns/default/sa/b")
            .set("inbound.mtls", "strict")
            .set("failRule", "closed");
        let strict = Pod::enrolled(&agent, "b", &settings)?;
        let files = tempfile::tempdir()?;
        fs::write(files.path().join("healthz"), "fine")?;
        Ok(Self {
            node,
            kubelet,
            others,
            agent,
            strict,
            files,
        })
    }

    /// curl in one of the node's cgroups, once; whether it was answered.
    fn probe(&self, cgroup: &Path, url: &str) -> Result<bool> {
        let curl = programs::packaged("curl", "curl")?;
        let arguments = [
            "-sS",
            "-f",
            "-g",
            "-o",
            "/dev/null",
            "--max-time",
            "10",
            url,
        ];
        let finished = self
            .node
            .start_in(cgroup, "curl", curl, &arguments)?
            .finish(SOON)?;
        Ok(finished.status.success())
    }

    /// Connections of the kubelet that are noted.
    fn noted(&self) -> Result<u64> {
        let inspected = self.agent.inspect()?;
        let layouts = inspected["entries"].as_object().into_iter().flatten();
        let noted = layouts.filter_map(|(_, maps)| maps["KUBELET_CONNECTIONS"].as_u64());
        Ok(noted.sum())
    }

    fn lost(&self) -> Result<f64> {
        let metrics = self.agent.metrics()?;
        Ok(metrics.sum("sidecar_agent_probes_lost_total", &[]))
    }
}

#[test]
fn the_kubelet_probes_a_strict_pod_and_nobody_else_does() {
    World::play(|world| {
        let mut stage = Stage::new(world)?;
        let (kubelet, others) = (stage.kubelet.clone(), stage.others.clone());
        let b = &stage.strict;
        let _nginx = peers::nginx(&b.workload, b.v4(8080), stage.files.path(), "")?;
        let v4 = format!("http://{}/healthz", b.v4(8080));

        ensure!(!stage.probe(&others, &v4)?, "anybody is let in");
        let refused = stage.agent.kernel_events("b", "inbound")?;
        ensure!(refused > 0, "it was not steered");
        for _ in 0..50 {
            ensure!(stage.probe(&kubelet, &v4)?, "the kubelet is refused");
        }
        ensure!(!stage.probe(&others, &v4)?, "anybody is let in afterwards");
        ensure!(
            stage.agent.kernel_events("b", "kubelet_probe")? == 50,
            "{}",
            stage.agent.metrics()?
        );
        // Below its cgroup is its, too; nothing of its connections stays.
        let helper = kubelet.join("helper");
        fs::create_dir(&helper)?;
        ensure!(stage.probe(&helper, &v4)?, "a child is refused");
        ensure!(stage.lost()? == 0.0, "{} were lost", stage.lost()?);
        let inspected = stage.agent.inspect()?;
        ensure!(
            inspected["kubelets"] == serde_json::json!([kubelet.to_string_lossy()]),
            "{inspected}"
        );
        ensure!(stage.noted()? == 0, "{} stay noted", stage.noted()?);

        // The kubelet starts anew, in another cgroup of that name.
        fs::remove_dir(&helper)?;
        fs::remove_dir(&kubelet)?;
        ensure!(!stage.probe(&others, &v4)?, "anybody is let in");
        fs::create_dir(&kubelet)?;
        wait::until_true("the new kubelet to be known", SOON, || {
            stage.probe(&kubelet, &v4)
        })?;

        // Without an agent, and with the next one.
        stage.agent.stop()?;
        ensure!(stage.probe(&kubelet, &v4)?, "the agent took it with it");
        stage.agent.restart(&programs::sidecar()?)?;
        ensure!(
            stage.probe(&kubelet, &v4)?,
            "the next agent does not know it"
        );
        ensure!(!stage.probe(&others, &v4)?, "anybody is let in");
        Ok(())
    });
}

/// A kubelet that speaks IPv4 through a socket of IPv6.
const MAPPED: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET6); s.settimeout(10)
s.connect(("::ffff:" + sys.argv[1], 8080))
s.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
assert s.recv(4096).startswith(b"HTTP/1.0 200"), "refused"
"#;

/// The listener is one of IPv6 that takes IPv4 as well, as those of Go are.
#[test]
fn probes_of_both_families_reach_a_listener_of_both() {
    World::play(|world| {
        let stage = Stage::new(world)?;
        let b = &stage.strict;
        let python = programs::packaged("python3", "python3")?;
        let files = stage.files.path().to_string_lossy();
        let serve = [
            "-m",
            "http.server",
            "8080",
            "--bind",
            "::",
            "--directory",
            &files,
        ];
        let _server = b
            .workload
            .start_in(&b.app(), "http-server", &python, &serve)?;
        peers::listens(&b.workload, b.v4(8080))?;
        for address in [b.v4(8080), b.workload.v6(8080)] {
            let url = format!("http://{address}/healthz");
            ensure!(
                !stage.probe(&stage.others, &url)?,
                "{url}: anybody is let in"
            );
            for _ in 0..5 {
                let let_in = stage.probe(&stage.kubelet, &url)?;
                ensure!(let_in, "{url}: the kubelet is refused");
            }
        }
        let host = b.v4(8080).ip().to_string();
        let mapped = |cgroup: &Path| -> Result<bool> {
            let arguments = ["-c", MAPPED, &host];
            let asked = stage.node.start_in(cgroup, "mapped", &python, &arguments)?;
            Ok(asked.finish(SOON)?.status.success())
        };
        ensure!(mapped(&stage.kubelet)?, "v4-mapped: the kubelet is refused");
        ensure!(!mapped(&stage.others)?, "v4-mapped: anybody is let in");
        let probes = stage.agent.kernel_events("b", "kubelet_probe")?;
        ensure!(probes == 11, "{probes} probes were let through");
        ensure!(stage.noted()? == 0, "{} stay noted", stage.noted()?);
        Ok(())
    });
}

/// One request from a port of its own; a reset ends the connection, so that the port is free at once. Arguments: own address, address.
const FROM_ONE_PORT: &str = r#"
import socket, struct, sys
s = socket.socket(); s.settimeout(10)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((sys.argv[1], 33333)); s.connect((sys.argv[2], 8080))
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
s.sendall(b"GET /healthz HTTP/1.1\r\nHost: b\r\n\r\n")
assert s.recv(4096).startswith(b"HTTP/1.1 200"), "refused"
"#;

/// Another program above the kubelet's has the kernel tell us nothing of ends: who has the port of its connection afterwards is not
/// the kubelet.
#[test]
fn a_port_that_the_kubelet_had_is_not_the_kubelet() {
    World::play(|world| {
        let stage = Stage::new(world)?;
        let b = &stage.strict;
        let _nginx = peers::nginx(&b.workload, b.v4(8080), stage.files.path(), "")?;
        let python = programs::packaged("python3", "python3")?;
        let above = stage.node.cgroup().display().to_string();
        let mut other = stage.node.start_in(
            &stage.others,
            "other",
            &python,
            &["-c", crate::hostile::programs::SOCK_OPS, &above],
        )?;
        other.line_within("attached", SOON)?;
        let (own, to) = (
            stage.node.v4(0).ip().to_string(),
            b.v4(8080).ip().to_string(),
        );
        let asks = |cgroup: &Path, name: &str| -> Result<bool> {
            let arguments = ["-c", FROM_ONE_PORT, &own, &to];
            let asked = stage.node.start_in(cgroup, name, &python, &arguments)?;
            Ok(asked.finish(SOON)?.status.success())
        };
        ensure!(asks(&stage.kubelet, "kubelet")?, "the kubelet is refused");
        ensure!(stage.noted()? == 1, "its end was told: this shows nothing");
        std::thread::sleep(std::time::Duration::from_secs(11));
        ensure!(!asks(&stage.others, "others")?, "anybody is let in");
        ensure!(asks(&stage.kubelet, "again")?, "the kubelet is refused");
        Ok(())
    });
}

/// Connects to somebody who never answers, and keeps that up.
const PENDING: &str = r#"
import errno, resource, socket, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
held = []
for _ in range(int(sys.argv[3])):
    s = socket.socket(); s.setblocking(False)
    error = s.connect_ex((sys.argv[1], int(sys.argv[2])))
    assert error == errno.EINPROGRESS, errno.errorcode[error]
    held.append(s)
print("held", flush=True)
sys.stdin.read()
"#;
/// Of one process: fewer than every limit of descriptors.
const PENDING_EACH: &str = "3500";

/// A kubelet with more connections at once than can be noted: those beyond are treated as anybody's and counted, and nobody else
/// notices.
#[test]
fn more_probes_than_can_be_noted_harm_nobody() {
    World::play(|world| {
        let stage = Stage::new(world)?;
        let b = &stage.strict;
        let _nginx = peers::nginx(&b.workload, b.v4(8080), stage.files.path(), "")?;
        let url = format!("http://{}/healthz", b.v4(8080));
        let stays = Settings::default().set("lifecycle.exitWhenAlone", false);
        let c = Pod::enrolled(&stage.agent, "c", &stays)?;
        let d = Pod::enrolled(&stage.agent, "d", &stays)?;
        let to = d.v4(7000).to_string();
        let _echo = d.serving("echo", &["echo", "--listen", &to])?;
        ensure!(stage.probe(&stage.kubelet, &url)?, "the kubelet is refused");

        let nobody = Ipv4Addr::new(10, 77, 0, 250);
        stage.node.namespace().add_silent_neighbour(nobody.into())?;
        let python = programs::packaged("python3", "python3")?;
        let mut pending: Vec<Running> = Vec::new();
        for port in 0..5 {
            let (host, port) = (nobody.to_string(), (8000 + port).to_string());
            let arguments = ["-c", PENDING, &host, &port, PENDING_EACH];
            let name = format!("pending-{port}");
            pending.push(
                stage
                    .node
                    .start_in(&stage.kubelet, &name, &python, &arguments)?,
            );
        }
        for each in &mut pending {
            each.line_within("held", SOON)?;
        }
        let (noted, lost) = (stage.noted()?, stage.lost()?);
        println!("{noted} connections are noted, {lost} were not");
        ensure!(noted > 16_000 && lost > 500.0, "that is no flood");
        ensure!(
            !stage.probe(&stage.kubelet, &url)?,
            "it was let in although it was not noted"
        );
        ensure!(stage.lost()? > lost, "it was not counted");
        for _ in 0..20 {
            ensure!(connects(&c, &to)?, "others suffer");
        }
        let inbound = stage.agent.kernel_events("d", "inbound")?;
        ensure!(inbound >= 20, "others are not steered: {inbound} of 20");

        for each in pending {
            each.finish(SOON)?.success()?;
        }
        ensure!(stage.noted()? == 0, "{} stay noted", stage.noted()?);
        ensure!(stage.probe(&stage.kubelet, &url)?, "it stays refused");
        Ok(())
    });
}

/// A cgroup with pods in it would make every pod the kubelet.
#[test]
fn a_cgroup_with_pods_is_no_kubelet() {
    World::play(|world| {
        let all = world.cgroup().to_string_lossy().into_owned();
        let agent = Agent::start_with(world, &["--kubelet-cgroup", &all])?;
        let log = agent.log()?;
        ensure!(log.contains("has pods in it"), "{log}");
        let _a = Pod::enrolled(&agent, "a", &Settings::default())?;
        ensure!(agent.get("/ready")?.status == 200, "not ready");
        Ok(())
    });
}
