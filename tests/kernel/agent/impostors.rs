//! Who pretends to be a proxy: by its user, by what only a proxy may say of its sockets, or by being one, of another pod. They get
//! what anybody gets.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use sidecar_tests::world::{Agent, Finished, Pod, Settings, World, agent::PROXY_UID, programs};

use super::{ENROL, SOON};

/// Runs a Python program as the pod's application, with the user and the group that its sidecar has.
fn as_proxys_user(pod: &Pod<'_>, program: &str, arguments: &[&str]) -> Result<Finished> {
    let setpriv = programs::packaged("setpriv", "util-linux")?;
    let python = programs::packaged("python3", "python3")?;
    let user = ["--reuid", PROXY_UID, "--regid", PROXY_UID, "--clear-groups"];
    let python = python.to_string_lossy();
    let words = [&user[..], &[&python, "-c", program], arguments].concat();
    let running = pod
        .workload
        .start_in(&pod.app(), "impostor", setpriv, &words)?;
    running.finish(SOON)?.success()
}

/// Says whether each connects, or why not.
const CONNECT: &str = r#"
import errno, os, socket, sys
assert os.getuid() == os.getgid() == 1337
for address in sys.argv[1:]:
    host, port = address.rsplit(":", 1)
    try: socket.create_connection((host, int(port)), 10).close(); print("connected", flush=True)
    except OSError as e: print(errno.errorcode.get(e.errno, e), flush=True)
"#;

/// With iptables the proxy is told by its uid, and any container that has it goes where it likes.
#[test]
fn the_proxys_user_is_steered_and_denied_as_any_other() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let server = world.workload("server")?;
        let (to, denied) = (server.v4(7000).to_string(), server.v4(7001).to_string());
        let _echo = server.serving("echo", &["echo", "--listen", &to])?;
        let _other = server.serving("other", &["echo", "--listen", &denied])?;
        let settings =
            Settings::default().push("outbound.deny", json!({"name": "no", "ports": [7001]}));
        let mut pod = Pod::enrolled(&agent, "a", &settings)?;
        // A pod with nobody in it is none.
        let _stays = pod
            .workload
            .start_in(&pod.app(), "stays", "/bin/sleep", &["600"])?;

        let said = as_proxys_user(&pod, CONNECT, &[&to, &denied])?.stdout;
        ensure!(said == "connected\nEPERM\n", "{said}");
        let events = (
            agent.kernel_events("a", "steered")?,
            agent.kernel_events("a", "denied")?,
        );
        ensure!(events == (1, 1), "{events:?}");

        // Without its sidecar there is no way past the fail rule either.
        let proxy = pod.take_proxy()?;
        proxy.signal(Signal::KILL)?;
        proxy.finish(SOON)?;
        let said = as_proxys_user(&pod, CONNECT, &[&to])?.stdout;
        ensure!(said == "ECONNREFUSED\n", "{said}");
        Ok(())
    });
}

/// The socket options of sidecar-common's `layout`, and the original destination, on a socket that is steered.
const OPTIONS: &str = r#"
import socket, sys
LEVEL = 0x5ca7
host, port = sys.argv[1].rsplit(":", 1)
def refused(what, call):
    try: print(what, "granted:", call(), flush=True)
    except OSError: print(what, "refused", flush=True)
s = socket.socket()
claim = bytes(10) + b"\xff\xff" + socket.inet_aton("192.0.2.1") + bytes(4)
refused("claim", lambda: s.setsockopt(LEVEL, 1, claim))
s.connect((host, int(port)))
s.sendall(b"x")
assert s.recv(1) == b"x"
refused("claim", lambda: s.setsockopt(LEVEL, 1, claim))
refused("join", lambda: s.setsockopt(LEVEL, 4, bytes(48)))
refused("settle", lambda: s.setsockopt(LEVEL, 5, bytes(4)))
for what, option, size in ("room", 2, 4), ("flow", 3, 48), ("joined", 6, 8):
    refused(what, lambda: s.getsockopt(LEVEL, option, size))
refused("original", lambda: s.getsockopt(socket.SOL_IP, 80, 16))
print("done", flush=True)
"#;

#[test]
fn an_application_is_not_believed_to_be_a_proxy() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let server = world.workload("server")?;
        let to = server.v4(7000).to_string();
        let _echo = server.serving("echo", &["echo", "--listen", &to])?;
        let pod = Pod::enrolled(&agent, "a", &Settings::default())?;
        let said = as_proxys_user(&pod, OPTIONS, &[&to])?.stdout;
        let answers = said.lines().filter(|line| line.ends_with(" refused"));
        ensure!(answers.count() == 8 && !said.contains("granted"), "{said}");
        ensure!(agent.kernel_events("a", "steered")? == 1, "not steered");
        Ok(())
    });
}

/// A pod with a proxy of its own making: it enrols, as every pod may, and then says that its connections come from somewhere else.
const FORGER: &str = r#"
agent, claimed, *targets = sys.argv[1:]
listener = socket.socket(); listener.bind(("0.0.0.0", 15006)); listener.listen()
steering = {"name": "evil", "failRule": "closed", "inboundCapture": "workload"}
a = socket.socket(socket.AF_UNIX); a.connect(agent)
assert '"enrolled"' in enrol(a, steering, listener)
print("enrolled", flush=True)
sys.stdin.readline()
for to in targets:
    host, port = to.rsplit(":", 1)
    c = socket.socket(); c.settimeout(10)
    try:
        c.setsockopt(0x5ca7, 1, bytes(10) + b"\xff\xff" + socket.inet_aton(claimed) + struct.pack("=HH", 4711, 0))
        c.connect((host, int(port)))
        print(to, c.makefile().read() or "closed", flush=True)
    except OSError as e: print(to, "refused", e, flush=True)
print("done", flush=True)
sys.stdin.read()
"#;

/// What a proxy says of a connection is believed within its own pod, and nowhere else: neither another application nor another
/// pod's policy takes it for somebody else.
#[test]
fn no_pod_speaks_in_the_name_of_another() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let friend = world.workload("friend")?;
        let friends = friend.v4(0).ip().to_string();
        let rule = json!({"from": [{"source": {"ipBlocks": [friends]}}]});
        let policy = json!([{"name": "friends", "rules": [rule]}]);
        let guarded = Settings::default()
            .protocol(7000, "tcp")
            .set("authorization.inbound.default", "deny")
            .set("authorization.inbound.policies", policy);
        let guarded = Pod::enrolled(&agent, "guarded", &guarded)?;
        let open = Pod::enrolled(&agent, "open", &Settings::default().protocol(7000, "tcp"))?;
        let evil = Pod::new(world, "evil", &Settings::default())?;
        let names = |pod: &Pod<'_>| -> Result<_> {
            let listen = pod.v4(7000).to_string();
            let server = pod.serving("names", &["names", "--listen", &listen])?;
            Ok((listen, server))
        };
        let (of_guarded, _guarded) = names(&guarded)?;
        let (of_open, _open) = names(&open)?;

        let python = programs::packaged("python3", "python3")?;
        let cgroup = evil.workload.cgroup().join("proxy");
        let socket = agent.socket().display().to_string();
        let of_evil = evil.v4(7000).to_string();
        let program = format!("{ENROL}{FORGER}");
        let arguments = [
            "-c",
            &program,
            &socket,
            &friends,
            &of_evil,
            &of_open,
            &of_guarded,
        ];
        let mut forger = evil
            .workload
            .start_in(&cgroup, "forger", python, &arguments)?;
        forger.line_within("enrolled", SOON)?;
        let _evil = names(&evil)?;
        forger.write(b"\n")?;
        forger.line_within("done", SOON)?;
        let said = forger.stdout()?;

        let claim = SocketAddr::new(friend.v4(0).ip(), 4711);
        ensure!(
            peer(&said, &of_evil)? == Some(claim),
            "its own application does not believe it, so that this shows nothing: {said}"
        );
        let seen = peer(&said, &of_open)?.context("the open pod did not answer")?;
        ensure!(seen.ip() == evil.v4(0).ip(), "taken for {seen}: {said}");
        ensure!(peer(&said, &of_guarded)?.is_none(), "it was let in: {said}");
        // The friend itself is.
        let call = ["call", "--to", &of_guarded];
        let called = friend.run_traffic("call", &call)?;
        ensure!(called.stdout.contains(&friends), "{called:?}");
        Ok(())
    });
}

/// Whom the application at `address` saw; nobody, if the connection did not reach it.
fn peer(said: &str, address: &str) -> Result<Option<SocketAddr>> {
    let mut lines = said.lines().filter_map(|line| line.split_once(' '));
    let answer = lines.find(|(to, _)| *to == address);
    let (_, answer) = answer.with_context(|| format!("nothing of {address}: {said}"))?;
    if !answer.starts_with('{') {
        return Ok(None);
    }
    let answer: Value = serde_json::from_str(answer)?;
    let peer = answer["peer"].as_str().context("no peer")?;
    Ok(Some(peer.parse()?))
}
