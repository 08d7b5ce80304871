//! Rules come and go while the workload runs; what they need is there as long as they are, whoever holds it.

use std::{fs, net::SocketAddr};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use serde_json::json;
use sidecar_tests::world::{Agent, Pod, Running, Settings, Sidecar, World, programs, wait};

use super::{
    connect,
    packets::{SOON, answering, links, python, said},
};

/// Sends a datagram on a socket that stays connected, for each line that it reads, and says what came of it, with a number. Arguments: address,
/// port.
const TALK: &str = r#"
import errno, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(10)
s.connect((sys.argv[1], int(sys.argv[2])))
print("connected", flush=True)
for number, _ in enumerate(sys.stdin):
    try:
        s.send(b"x")
        print(number, "answered" if s.recv(100) else "nothing", flush=True)
    except OSError as e: print(number, errno.errorcode.get(e.errno, str(e)), flush=True)
"#;

fn open() -> Settings {
    Settings::default().set("lifecycle.exitWhenAlone", false)
}

/// Which runs.
struct Talk {
    running: Running,
    sent: u32,
}

impl Talk {
    fn start(pod: &Pod<'_>, to: SocketAddr) -> Result<Self> {
        let python = programs::packaged("python3", "python3")?;
        let (ip, port) = (to.ip().to_string(), to.port().to_string());
        let arguments = ["-c", TALK, &ip, &port];
        let app = pod.app();
        let mut running = pod.workload.start_in(&app, "talk", python, &arguments)?;
        running.line_within("connected", SOON)?;
        Ok(Self { running, sent: 0 })
    }

    fn send(&mut self) -> Result<String> {
        self.running.write(b"\n")?;
        let start = format!("{} ", self.sent);
        self.sent += 1;
        let line = self.running.line_within(&start, SOON)?;
        Ok(line.trim_start_matches(&start).to_owned())
    }
}

fn egress_links(pod: &Pod<'_>) -> Result<usize> {
    let links = links(&pod.workload)?;
    Ok(links
        .iter()
        .filter(|link| link.starts_with("egress"))
        .count())
}

/// Six for its cgroup, and one for its interface.
const LINKS: usize = 7;

#[test]
fn hooks_are_there_while_there_are_rules() {
    World::play(|world| {
        let mut agent = Agent::start(world)?;
        let server = world.workload("server")?;
        let _answering = answering(&server, 7000)?;
        let mut pod = Pod::enrolled(&agent, "a", &open())?;
        let mut talk = Talk::start(&pod, server.v4(7000))?;
        ensure!(talk.send()? == "answered", "without a rule");
        ensure!(egress_links(&pod)? == 0, "{:?}", links(&pod.workload)?);

        let denied = open().set(
            "outbound.deny",
            json!([{ "name": "no-udp", "protocols": ["UDP"] }]),
        );
        let follow = |settings: &Settings| -> Result<()> {
            fs::write(world.directory().join("a.yaml"), settings.text("a"))?;
            pod.proxy()?.signal(Signal::HUP)
        };
        follow(&denied)?;
        // The socket is older than the rule.
        wait::until_true("the rule", SOON, || Ok(talk.send()? == "EPERM"))?;
        ensure!(egress_links(&pod)? == LINKS, "{:?}", links(&pod.workload)?);
        let inspected = agent.inspect()?.to_string();
        ensure!(inspected.contains("egress-egress_packet"), "{inspected}");

        // Without an agent, with one that has just come, and with a sidecar that has.
        agent.kill()?;
        ensure!(talk.send()? == "EPERM", "without an agent");
        // With other constants its programs are others.
        agent.set_environment(&[("SIDECAR_FAULT", "naive-join")]);
        agent.restart(&programs::sidecar()?)?;
        let log = agent.log()?;
        ensure!(log.contains("are replaced by ours"), "{log}");
        ensure!(talk.send()? == "EPERM", "with another agent");
        pod.take_proxy()?.stop(SOON)?;
        pod.set_settings(&denied);
        pod.enrol(&agent)?;
        ensure!(talk.send()? == "EPERM", "with another sidecar");
        ensure!(egress_links(&pod)? == LINKS, "{:?}", links(&pod.workload)?);

        fs::write(world.directory().join("a.yaml"), open().text("a"))?;
        pod.proxy()?.signal(Signal::HUP)?;
        wait::until_true("the rule to go", SOON, || Ok(talk.send()? == "answered"))?;
        wait::until_true(
            "what it needed to go",
            SOON,
            || Ok(egress_links(&pod)? == 0),
        )?;

        // All goes with the agents.
        pod.set_settings(&denied);
        fs::write(world.directory().join("a.yaml"), denied.text("a"))?;
        pod.proxy()?.signal(Signal::HUP)?;
        wait::until_true("the rule again", SOON, || Ok(talk.send()? == "EPERM"))?;
        pod.take_proxy()?.stop(SOON)?;
        agent.stop()?;
        let uninstalled = agent.uninstall()?;
        ensure!(uninstalled.code() == 0, "{uninstalled:?}");
        ensure!(talk.send()? == "answered", "after the agents");
        Ok(())
    });
}

/// The proxy runs below the pod's cgroup, and dials what its application may not.
#[test]
fn the_proxy_is_not_meant() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let server = world.workload("server")?;
        let echo = server.v4(7000).to_string();
        let _echo = server.serving("echo", &["echo", "--listen", &echo])?;
        let service = json!({
            "name": "echo", "addresses": ["10.99.0.1/32"], "ports": [{ "port": 80, "protocol": "tcp" }],
            "endpoints": [{ "address": server.v4(0).ip(), "port": 7000 }],
        });
        let allowed = json!([{ "name": "echo", "cidrs": ["10.99.0.1"], "ports": [80] }]);
        let settings = open()
            .set(
                "outbound.deny",
                json!([{ "name": "everything", "cidrs": ["0.0.0.0/0", "::/0"] }]),
            )
            .set("outbound.allow", allowed)
            .push("services", service);
        let pod = Pod::enrolled(&agent, "a", &settings)?;
        let ping = |to: &str| {
            let arguments = ["ping-pong", "--to", to, "--rounds", "10"];
            pod.traffic("ping", &arguments)?.finish(SOON)
        };
        let through = ping("10.99.0.1:80")?;
        ensure!(through.status.success(), "{through:?}");
        let past = ping(&echo)?;
        ensure!(!past.status.success(), "{past:?}");
        ensure!(
            agent.kernel_events("a", "denied")? == 1,
            "{}",
            agent.metrics()?
        );
        Ok(())
    });
}

/// Sends many datagrams that are denied. Argument: the address.
const FLOOD: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
denied = 0
for _ in range(20000):
    try: s.sendto(b"x", (sys.argv[1], 7000))
    except PermissionError: denied += 1
print("said", denied)
"#;

/// Each is counted; what is told of them leaves room for what else there is to tell.
#[test]
fn a_flood_is_counted_and_drowns_nothing() {
    World::play(|world| {
        let (server, other) = (world.workload("server")?, world.workload("other")?);
        let rules = json!([
            { "name": "no-server", "cidrs": [server.v4(0).ip()] },
            { "name": "no-other", "cidrs": [other.v4(0).ip()] },
        ]);
        let settings = open().set("outbound.deny", rules);
        let client = world.workload("client")?.with_sidecar(&settings)?;
        let to = server.v4(0).ip().to_string();
        let denied = said(python(&client, FLOOD, &[&to])?)?;
        ensure!(denied == "20000", "{denied}");
        let counted = client.metrics()?.kernel_events("denied");
        ensure!(counted == 20_000, "{counted}");
        let got = connect(&client, &other.v4(0).ip().to_string(), 7000)?;
        ensure!(got == "EPERM", "{got}");
        wait::until_true("the last denial in the log", SOON, || {
            Ok(client.sidecar()?.log()?.contains("no-other"))
        })
    });
}

/// Says again and again what becomes of a datagram. Argument: the address.
const KEEP_SENDING: &str = r#"
import errno, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    try: s.sendto(b"x", (sys.argv[1], 7000)); print("said sent", flush=True)
    except OSError as e: print("said", errno.errorcode.get(e.errno, str(e)), flush=True)
    time.sleep(0.1)
"#;

#[test]
fn where_packet_sockets_cannot_be_stopped_rules_are_refused() {
    World::play(|world| {
        let server = world.workload("server")?;
        let rules = json!([{ "name": "mail", "ports": [25] }]);
        let settings = open()
            .set("outbound.deny", rules)
            // As before Linux 6.6.
            .environment("SIDECAR_FAULT", "no-interface-links");

        let workload = world.workload("refused")?;
        let application = workload.cgroup().join("application");
        fs::create_dir(&application)?;
        let sleeping = workload.start_in(&application, "sleep", "/bin/sleep", &["1000"])?;
        let refused = Sidecar::launch(&workload, &settings.clone().cgroup("application"))?;
        let refused = refused.finish(SOON)?;
        ensure!(refused.code() == 1, "{refused:?}");
        for word in ["outbound.deny", "CAP_NET_RAW", "6.6"] {
            ensure!(refused.stderr.contains(word), "{word}: {refused:?}");
        }
        sleeping.stop(SOON)?;

        // Found later: nothing leaves any more.
        let to = server.v4(0).ip().to_string();
        let python = programs::packaged("python3", "python3")?;
        let sealed = world.workload("sealed")?.with_sidecar(&settings)?;
        let sending = ["-c", KEEP_SENDING, &to];
        let mut running = sealed.start("sending", &python, &sending)?;
        running.line_within("said sent", SOON)?;
        running.line_within("said EPERM", SOON)?;
        let log = sealed.sidecar()?.log()?;
        ensure!(log.contains("Start it without CAP_NET_RAW"), "{log}");
        // As before, when it is gone.
        running.signal(Signal::KILL)?;
        running.finish(SOON)?;
        // As it is told to.
        let bounded = ["--bounding-set", "-net_raw", "--inh-caps", "-net_raw"];
        let python = python.display().to_string();
        let bounded = [&bounded[..], &[&python], &sending].concat();
        let setpriv = programs::packaged("setpriv", "util-linux")?;
        wait::until_true("the rules to hold again", SOON, || {
            Ok(sealed.sidecar()?.log()?.contains("the rules hold again"))
        })?;
        let mut running = sealed.start("bounded", setpriv, &bounded)?;
        wait::until_true("datagrams for two looks", SOON, || {
            let said = running.stdout()?;
            ensure!(
                running.ended()?.is_none() && !said.contains("EPERM"),
                "{running}"
            );
            Ok(said.lines().count() > 30)
        })?;
        running.signal(Signal::KILL)?;
        running.finish(SOON)?;
        Ok(())
    });
}
