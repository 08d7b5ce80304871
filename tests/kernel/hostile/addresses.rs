//! Addresses name nobody: two networks may use the same ones, a pod may have several, a neighbour may squat those of others.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use sidecar_tests::{
    report::Report,
    world::{Agent, Pod, Settings, Workload, World, workload::LIMIT},
};

use super::{GREET, SOON, application, call, open};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
const CONNECTIONS: &str = "300";

/// Two isolated networks of one node, equal to the last port: no byte of one is read in the other.
#[test]
fn networks_with_equal_addresses_do_not_mix() {
    World::play(|world| {
        let settings = Settings::default().set("redirect.adaptive", false);
        let mut networks = Vec::new();
        for number in ["1", "2"] {
            let (mut a, mut b) = world.pair(&format!("a{number}"), &format!("b{number}"))?;
            a.namespace().add_address(IpAddr::V4(CLIENT))?;
            b.namespace().add_address(IpAddr::V4(SERVER))?;
            // So few ports that both networks use the same ones at the same time.
            for workload in [&a, &b] {
                workload
                    .namespace()
                    .sysctl("net.ipv4.ip_local_port_range", "40000 41023")?;
                workload.namespace().sysctl("net.ipv4.tcp_tw_reuse", "1")?;
            }
            a.start_sidecar(&settings)?;
            b.start_sidecar(&settings)?;
            networks.push((a, b));
        }
        let to = SocketAddr::from((SERVER, 7000)).to_string();
        let serve = |workload: &Workload<'_>| {
            workload.serving(
                "serve",
                &["serve", "--listen", &to, "--connections", CONNECTIONS],
            )
        };
        let drive = |workload: &Workload<'_>| {
            let more = ["--connections", CONNECTIONS, "--concurrency", "8"];
            workload.traffic(
                "drive",
                &[&["drive", "--to", &to], more.as_slice()].concat(),
            )
        };
        let servers = networks
            .iter()
            .map(|(_, b)| serve(b))
            .collect::<Result<Vec<_>>>()?;
        let clients = networks
            .iter()
            .map(|(a, _)| drive(a))
            .collect::<Result<Vec<_>>>()?;
        for running in clients.into_iter().chain(servers) {
            let report = running.finish(LIMIT)?.success()?.account::<Report>()?;
            report.expect_exact(300)?;
        }
        for (a, _) in &networks {
            let redirected = a.metrics()?.kernel_events("redirected");
            ensure!(redirected > 0, "nothing was redirected: {}", a.metrics()?);
        }
        Ok(())
    });
}

/// A pod with a second address is called there: its proxy does not call itself, for ever and ever.
#[test]
fn a_proxy_does_not_call_itself_at_a_second_address() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let pod = Pod::enrolled(&agent, "b", &open())?;
        let stranger = world.workload("a")?;
        let second = Ipv4Addr::new(10, 77, 0, 200);
        pod.workload.namespace().add_address(IpAddr::V4(second))?;
        let mut server = application(&pod, "greet", GREET, &["0.0.0.0", "8080", "6"])?;
        server.line_within("listening", SOON)?;
        let client = stranger.v4(0).ip();
        for _ in 0..3 {
            let said = call(&stranger, (second, 8080).into())?;
            ensure!(said == format!("hello {client}"), "{said}");
        }
        let inbound = agent.kernel_events("b", "inbound")?;
        ensure!(inbound == 3, "3 connections became {inbound}");
        Ok(())
    });
}

/// In a network namespace of its own a hostile pod has the addresses of two others, and connects them with each other as often as
/// it can. It joins what it has, and says that all is settled.
const SQUAT: &str = r#"
import ctypes, os, select, socket, struct, subprocess, sys, time
client, server, port, low, high = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
assert ctypes.CDLL(None).unshare(0x40000000) == 0
for address in (client, server):
    subprocess.check_call(["ip", "addr", "add", address + "/32", "dev", "lo"])
subprocess.check_call(["ip", "link", "set", "lo", "up"])
LEVEL, WINDOW, JOIN, SETTLE = 0x5ca7, 2, 4, 5
l = socket.create_server((server, port), backlog=512); l.setblocking(False)
own = socket.create_server(("127.0.0.1", 7777)); m = socket.create_connection(("127.0.0.1", 7777)); n, _ = own.accept(); n.setblocking(False)
def cookie(s): return struct.unpack("=Q", s.getsockopt(socket.SOL_SOCKET, 57, 8))[0]
joined, end, stolen, tries = 0, time.time() + 20, b"", 0
print("squatting", flush=True)
while time.time() < end:
    held = []
    for p in range(low, high):
        s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.setblocking(False)
        try: s.bind((client, p)); s.connect_ex((server, port))
        except OSError: continue
        held.append(s); tries += 1
    try:
        while True: held.append(l.accept()[0])
    except OSError: pass
    for s in held:
        for a, b in ((s, m), (m, s)):
            try: a.setsockopt(LEVEL, JOIN, struct.pack("=Q", cookie(b))); joined += 1
            except OSError: pass
        try: m.getsockopt(LEVEL, WINDOW, 4); m.setsockopt(LEVEL, SETTLE, struct.pack("=I", tries))
        except OSError: pass
    poll = select.poll()
    for s in held + [n]: poll.register(s, select.POLLIN)
    ready = {fd for fd, _ in poll.poll(20)}
    for s in [s for s in held + [n] if s.fileno() in ready]:
        try: stolen += s.recv(65536)
        except OSError: pass
    for s in held: s.close()
print("tried", tries, "joined", joined, "stolen", len(stolen), flush=True)
"#;

#[test]
fn who_squats_the_addresses_of_others_gets_nothing() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let tcp = |port: u16, side: &str| {
            open()
                .set(
                    &format!("{side}.ports"),
                    serde_json::json!([{ "port": port, "protocol": "tcp" }]),
                )
                .set("redirect.adaptive", false)
        };
        let a = Pod::enrolled(&agent, "a", &tcp(7000, "outbound"))?;
        let b = Pod::enrolled(&agent, "b", &tcp(7000, "inbound"))?;
        let evil = Pod::enrolled(&agent, "evil", &open())?;
        let range = "40000 40511";
        a.workload
            .namespace()
            .sysctl("net.ipv4.ip_local_port_range", range)?;
        let (client, server) = (a.v4(0).ip().to_string(), b.v4(0).ip().to_string());
        // Its sidecar's sockets are what it may join: it runs where the sidecar does.
        let proxy = evil.app().with_file_name("proxy");
        let arguments = [&client, &server, "7000", "40000", "40512"];
        let mut squatter = super::python(&evil.workload, &proxy, "squat", SQUAT, &arguments)?;
        squatter.line_within("squatting", SOON)?;
        let to = b.v4(7000).to_string();
        let serving = b.traffic("serve", &["serve", "--listen", &to, "--connections", "200"])?;
        let serving = serving.listening()?;
        let driving = a.traffic(
            "drive",
            &[
                "drive",
                "--to",
                &to,
                "--connections",
                "200",
                "--concurrency",
                "8",
            ],
        )?;
        for running in [driving, serving] {
            let report = running.finish(LIMIT)?.success()?.account::<Report>()?;
            report.expect_exact(200)?;
        }
        let said = squatter.line_within("tried", SOON)?;
        println!("{said}");
        let stolen = said.split_whitespace().last().context("it says nothing")?;
        ensure!(stolen == "0", "{said}");
        Ok(())
    });
}
