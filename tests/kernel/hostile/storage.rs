//! No memory for what has to be remembered of a socket: the connection is refused, and somebody is told.

use anyhow::{Context, ensure};
use sidecar_tests::world::{Agent, Pod, World, wait};

use super::{SOON, application, greets, open};

/// Uses up what the kernel allows one socket to keep, with keys for signatures towards peers that nobody asks, and connects it when it is
/// told to. Arguments: address, port.
const EXHAUSTED: &str = r#"
import errno, socket, struct, sys
TCP_MD5SIG = 14
s, count = socket.socket(), 0; s.settimeout(10)
try:
    while True:
        peer = struct.pack("=HH4s120x", socket.AF_INET, 0, struct.pack(">I", 0x0a640000 + count))
        s.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, peer + struct.pack("=BBHII80s", 0, 0, 3, 0, 0, b"key"))
        count += 1
except OSError as e: print("keys", count, errno.errorcode.get(e.errno), flush=True)
sys.stdin.readline()
try:
    s.connect((sys.argv[1], int(sys.argv[2])))
    print("said", s.recv(100).decode() or "nothing", flush=True)
except OSError as e: print("said", errno.errorcode.get(e.errno, str(e)), flush=True)
"#;

/// Made before the enrolment: later ones are marked as they are made, when nothing can be used up yet.
#[test]
fn a_socket_that_cannot_be_marked_connects_nowhere() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let outside = world.workload("a")?;
        let _server = greets(&outside, "9000")?;
        let mut pod = Pod::new(world, "b", &open())?;
        let ip = outside.v4(0).ip().to_string();
        let mut connects = application(&pod, "exhausted", EXHAUSTED, &[&ip, "9000"])?;
        let keys = connects.line_within("keys", SOON)?;
        let mut words = keys.split_whitespace().skip(1);
        let count: u32 = words.next().context("no number")?.parse()?;
        ensure!(
            count > 10 && words.next() == Some("ENOMEM"),
            "the kernel sets no bound: {keys}"
        );
        pod.enrol(&agent)?;
        connects.write(b"\n")?;
        let said = connects.line_within("said", SOON)?;
        // The latter before Linux 5.18.
        ensure!(["said ENOBUFS", "said EPERM"].contains(&&*said), "{said}");
        let refused = agent.kernel_events("b", "connect_refused")?;
        ensure!(refused == 1, "{refused} were counted");
        wait::until_true("a word in the log", SOON, || {
            Ok(agent.log()?.contains("outbound connections are refused"))
        })
    });
}
