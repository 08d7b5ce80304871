//! A neighbour on a bare host waits where the sidecar listened: with the sidecar gone, it gets nothing that was meant for others.

use anyhow::ensure;
use sidecar_tests::world::{Settings, World};

use super::{GREET, SOON, python};

/// Takes the sidecar's port, and shows what it is sent.
const THIEF: &str = r#"
import socket, threading
def serve(family, address):
    l = socket.socket(family); l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    l.bind((address, 15002)); l.listen(16)
    print("waiting", flush=True)
    while True: print("stolen", l.accept()[0].recv(100), flush=True)
for end in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")): threading.Thread(target=serve, args=end).start()
"#;

/// Tells a secret to each destination. Arguments: addresses, all with port 9000.
const TELLS: &str = r#"
import errno, socket, sys
for address in sys.argv[1:]:
    try:
        s = socket.create_connection((address, 9000), 10); s.settimeout(10)
        s.sendall(b"secret"); print("said", s.recv(100).decode() or "nothing", flush=True)
    except OSError as e: print("said", errno.errorcode.get(e.errno, str(e)), flush=True)
"#;

#[test]
fn who_takes_the_port_of_a_dead_sidecar_gets_nothing() {
    World::play(|world| {
        let outside = world.workload("c")?;
        let arguments = ["::", "9000", "6"];
        let mut server = python(&outside, outside.cgroup(), "greet", GREET, &arguments)?;
        server.line_within("listening", SOON)?;
        let mut a = world.workload("a")?.with_sidecar(&Settings::default())?;
        let app = a.app_cgroup();
        let (v4, v6) = (
            outside.v4(0).ip().to_string(),
            outside.v6(0).ip().to_string(),
        );
        let tell = |a: &sidecar_tests::world::Workload<'_>, name: &str| {
            let telling = python(a, &app, name, TELLS, &[&v4, &v6])?;
            anyhow::Ok(telling.finish(SOON)?.success()?.stdout)
        };
        let said = tell(&a, "tells")?;
        ensure!(
            said.matches("hello").count() == 2,
            "it does not work to begin with: {said}"
        );
        a.take_sidecar()?.kill()?;
        let said = tell(&a, "tells-nobody")?;
        ensure!(
            said == "said ECONNREFUSED\n".repeat(2),
            "nobody there: {said}"
        );
        let mut thief = python(&a, a.cgroup(), "thief", THIEF, &[])?;
        thief.line_within("waiting", SOON)?;
        thief.line_within("waiting", SOON)?;
        let said = tell(&a, "tells-a-thief")?;
        ensure!(
            said == "said ECONNREFUSED\n".repeat(2),
            "somebody else there: {said}"
        );
        let stolen = thief.stdout()?;
        ensure!(!stolen.contains("stolen"), "{stolen}");
        Ok(())
    });
}
