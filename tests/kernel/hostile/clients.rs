//! Clients of every kind: what goes out is steered, and what is denied is denied.

use anyhow::ensure;
use serde_json::json;
use sidecar_tests::world::{Agent, Pod, World};

use super::{SOON, application, greets, open};

/// Connects by Multipath TCP. Arguments: address, port.
const CALL_MPTCP: &str = r#"
import errno, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
s.settimeout(10)
try:
    s.connect((sys.argv[1], int(sys.argv[2])))
    print("said", s.recv(100).decode() or "nothing", flush=True)
except OSError as e: print("said", errno.errorcode.get(e.errno, str(e)), flush=True)
"#;

/// Connects, disconnects the socket, and connects it to the sidecar's port as if it had been steered there. Arguments: address, port.
const CALL_ANEW: &str = r#"
import ctypes, errno, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
s = socket.socket(); s.settimeout(10)
s.connect((sys.argv[1], int(sys.argv[2])))
assert s.recv(100).startswith(b"hello")
assert libc.connect(s.fileno(), bytes(16), 16) == 0, "it cannot be disconnected"
try:
    s.connect(("127.0.0.1", 15002))
    print("said", s.recv(100).decode() or "nothing", flush=True)
except OSError as e: print("said", errno.errorcode.get(e.errno, str(e)), flush=True)
"#;

/// Where a socket led once says nothing of where it leads now.
#[test]
fn a_socket_that_is_connected_anew_is_judged_anew() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let outside = world.workload("a")?;
        let pod = Pod::enrolled(&agent, "b", &open())?;
        let _server = greets(&outside, "9000")?;
        let ip = outside.v4(0).ip().to_string();
        let calling = application(&pod, "call", CALL_ANEW, &[&ip, "9000"])?;
        let said = calling.finish(SOON)?.success()?.stdout;
        ensure!(
            ["said nothing", "said ECONNRESET"].contains(&said.trim()),
            "it was taken for a steered connection: {said}"
        );
        Ok(())
    });
}

#[test]
fn multipath_tcp_is_steered_and_denied() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let stranger = world.workload("a")?;
        let denied = json!([{ "name": "nobody", "cidrs": [format!("{}/32", stranger.v4(0).ip())], "ports": [9001] }]);
        let pod = Pod::enrolled(&agent, "b", &open().set("outbound.deny", denied))?;
        let ip = stranger.v4(0).ip().to_string();
        for port in ["9000", "9001"] {
            let _server = greets(&stranger, port)?;
            let calling = application(&pod, "call", CALL_MPTCP, &[&ip, port])?;
            let said = calling.finish(SOON)?.success()?.stdout;
            let expected = match port {
                "9000" => format!("said hello {}", pod.v4(0).ip()),
                _ => "said EPERM".to_owned(),
            };
            ensure!(said.trim() == expected, "port {port}: {said}");
        }
        let steered = agent.kernel_events("b", "steered")?;
        ensure!(steered == 1, "{steered} were steered");
        Ok(())
    });
}
