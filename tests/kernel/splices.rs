//! splice never sees redirected bytes. Whoever reads so is noticed, however he says it: his first connection may be reset, none
//! hangs, and nothing is redirected to him from then on.

use std::time::Duration;

use anyhow::{Result, ensure};
use sidecar_tests::world::{World, programs};

use crate::integrity::always;

const SOON: Duration = Duration::from_secs(30);

/// Sends 50 numbered messages of 100 bytes with pauses. Arguments: address, port.
const CALL: &str = r#"
import socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
try:
    for number in range(50):
        s.send(bytes([number]) * 100)
        time.sleep(0.01)
    s.shutdown(socket.SHUT_WR)
    s.settimeout(10)
    s.recv(1)
except OSError: pass
"#;

fn is_noticed(way: &str) {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&always())?;
        let b = world.workload("b")?.with_sidecar(&always())?;
        let address = b.v4(7000);
        let arguments = ["--listen", &address.to_string(), "--way", way];
        let mut server = b.start("splicer", &programs::own("splicer")?, &arguments)?;
        server.line_within("listening", SOON)?;
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let mut said = |number: &str| -> Result<String> {
            let python = programs::packaged("python3", "python3")?;
            let client = a.start("call", python, &["-c", CALL, &ip, &port])?;
            let said = server.line_within(&format!("{number}: "), SOON)?;
            client.finish(SOON)?;
            Ok(said)
        };
        let first = said("1")?;
        println!("{way}: {first}");
        ensure!(
            first.ends_with("ConnectionAborted") || first == "1: 5000 bytes, end",
            "the first connection: {first}"
        );
        ensure!(
            b.metrics()?.kernel_events("splice") == 1,
            "not noticed: {}",
            b.metrics()?
        );
        let second = said("2")?;
        ensure!(
            second == "2: 5000 bytes, end",
            "the second connection: {second}"
        );
        Ok(())
    });
}

#[test]
fn by_the_system_call() {
    is_noticed("call");
}

/// Elsewhere 64-bit programs cannot make it.
#[cfg(target_arch = "x86_64")]
#[test]
fn by_the_system_call_of_32_bit_programs() {
    is_noticed("compat");
}

#[test]
fn through_io_uring() {
    is_noticed("uring");
}
