//! Sockets in other hands than those that made them: the policy of the workload that made a socket holds, whoever uses it.

use std::fs;

use anyhow::ensure;
use serde_json::{Value, json};
use sidecar_tests::world::{Agent, Pod, Workload, World};

use super::{SOON, application, call, closed, greets, open};

/// Makes a socket, has it used when it is told to, and says what came of that. Arguments: address, port.
const LATER: &str = r#"
import errno, socket, sys
s = socket.socket(); s.settimeout(10)
print("made", flush=True)
sys.stdin.readline()
try:
    s.connect((sys.argv[1], int(sys.argv[2])))
    print("said", s.recv(100).decode() or "nothing", flush=True)
except OSError as e: print("said", errno.errorcode.get(e.errno, str(e)), flush=True)
"#;

/// `outbound.deny` of one address, on one port.
fn denying(workload: &Workload<'_>, port: u16) -> Value {
    json!([{ "name": "nobody", "cidrs": [format!("{}/32", workload.v4(0).ip())], "ports": [port] }])
}

/// Made in the pod before it was enrolled, used by somebody of whom nothing is known.
#[test]
fn a_socket_that_strangers_use_is_the_pods_that_made_it() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let outside = world.workload("a")?;
        let _servers = [greets(&outside, "9000")?, greets(&outside, "9001")?];
        let settings = open().set("outbound.deny", denying(&outside, 9001));
        let mut pod = Pod::new(world, "b", &settings)?;
        let ip = outside.v4(0).ip().to_string();
        let mut users = Vec::new();
        for port in ["9000", "9001"] {
            let mut user = application(&pod, &format!("later-{port}"), LATER, &[&ip, port])?;
            user.line_within("made", SOON)?;
            users.push(user);
        }
        let _stays = pod
            .workload
            .start_in(&pod.app(), "stays", "/bin/sleep", &["600"])?;
        pod.enrol(&agent)?;
        for (mut user, expected) in users.into_iter().zip([
            format!("said hello {}", pod.v4(0).ip()),
            "said EPERM".into(),
        ]) {
            fs::write(world.cgroup().join("cgroup.procs"), user.pid().to_string())?;
            user.write(b"\n")?;
            let said = user.line_within("said", SOON)?;
            ensure!(said == expected, "{said}, not {expected}");
        }
        let steered = agent.kernel_events("b", "steered")?;
        ensure!(steered == 1, "{steered} were steered");
        Ok(())
    });
}

/// Hands sockets to whoever connects to a Unix socket: one that is new, one that is connected, one that listens, one of UDP. Arguments: the
/// Unix socket, address and port to connect to.
const HANDS_OVER: &str = r#"
import array, os, socket, sys, time
path, address, port = sys.argv[1:]
door = socket.socket(socket.AF_UNIX); door.bind(path); door.listen(8)
connected = socket.create_connection((address, int(port)), 10)
listener = socket.create_server(("0.0.0.0", 8080))
print("ready", flush=True)
kinds = {b"new": socket.socket, b"connected": lambda: connected, b"listening": lambda: listener,
         b"datagram": lambda: socket.socket(type=socket.SOCK_DGRAM)}
while True:
    c, _ = door.accept()
    made = kinds[c.recv(100)]()
    c.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [made.fileno()]))])
    c.close()
"#;

/// Takes a socket and uses it. Arguments: the Unix socket, which kind, address and port to connect a new one to.
const TAKES: &str = r#"
import array, errno, socket, sys
path, kind, address, port = sys.argv[1:]
door = socket.socket(socket.AF_UNIX); door.connect(path); door.send(kind.encode())
_, ancillary, _, _ = door.recvmsg(1, socket.CMSG_SPACE(4))
s = socket.socket(fileno=array.array("i", ancillary[0][2][:4])[0]); s.settimeout(10)
print("taken", flush=True)
if kind == "listening":
    s.settimeout(None)
    while True: c, peer = s.accept(); c.sendall(b"hello " + peer[0].encode()); c.close()
try:
    if kind == "datagram": s.sendto(b"x", (address, int(port))); sys.exit(print("said sent", flush=True))
    if kind == "new": s.connect((address, int(port)))
    print("said", s.recv(100).decode() or "nothing", flush=True)
except OSError as e: print("said", errno.errorcode.get(e.errno, str(e)), flush=True)
"#;

#[test]
fn sockets_of_one_pod_in_the_hands_of_another_stay_the_first_ones() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let outside = world.workload("c")?;
        let _servers = [greets(&outside, "9000")?, greets(&outside, "9001")?];
        let ip = outside.v4(0).ip().to_string();
        let a = Pod::enrolled(
            &agent,
            "a",
            &closed().set("outbound.deny", denying(&outside, 9001)),
        )?;
        // Its own sidecar would have nothing to say of these destinations.
        let b = Pod::enrolled(
            &agent,
            "b",
            &open().set("outbound.exclude.cidrs", json!([format!("{ip}/32")])),
        )?;
        let path = world.directory().join("door").display().to_string();
        let mut maker = application(&a, "hands", HANDS_OVER, &[&path, &ip, "9000"])?;
        maker.line_within("ready", SOON)?;
        let own = a.v4(0).ip();
        let before = agent.kernel_events("a", "steered")?;
        for (kind, port, expected) in [
            ("new", "9000", format!("hello {own}")),
            ("new", "9001", "EPERM".to_owned()),
            ("connected", "0", format!("hello {own}")),
            ("datagram", "9000", "sent".to_owned()),
            ("datagram", "9001", "EPERM".to_owned()),
        ] {
            let mut taker = application(
                &b,
                &format!("takes-{kind}-{port}"),
                TAKES,
                &[&path, kind, &ip, port],
            )?;
            let said = taker.line_within("said", SOON)?;
            ensure!(
                said == format!("said {expected}"),
                "{kind}, port {port}: {said}"
            );
        }
        let steered = agent.kernel_events("a", "steered")? - before;
        ensure!(steered == 1, "{steered} were steered to its proxy");
        let mut taker = application(&b, "takes", TAKES, &[&path, "listening", &ip, "0"])?;
        taker.line_within("taken", SOON)?;
        drop(maker);
        for _ in 0..5 {
            let said = call(&outside, a.v4(8080))?;
            ensure!(!said.contains("hello"), "past the policy: {said}");
        }
        Ok(())
    });
}
