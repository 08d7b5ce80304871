//! What a workload may not reach: `connect` fails with EPERM, and the log says who, where and why; so does whatever else it sends.

mod packets;
mod rules;

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use sidecar_tests::world::{Settings, Workload, World, wait, workload::LIMIT};

/// Tries to connect from within the workload, and gives the error's name, or `connected`.
fn connect(workload: &Workload<'_>, host: &str, port: u16) -> Result<String> {
    let program = "import errno, socket, sys\n\
                   try:\n    socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close(); print('connected')\n\
                   except OSError as e: print(errno.errorcode.get(e.errno, e))";
    let running = workload.start(
        "connect",
        "/usr/bin/python3",
        &["-c", program, host, &port.to_string()],
    )?;
    Ok(running.finish(LIMIT)?.success()?.stdout.trim().to_owned())
}

#[test]
fn a_denied_destination_fails_at_connect_and_is_logged() {
    World::play(|world| {
        let server = world.workload("server")?;
        let (v4, v6) = (server.v4(7000), server.v6(7000));
        let rules = json!([
            { "name": "one-address", "cidrs": [v4.ip().to_string()], "ports": [7001] },
            { "name": "every-address", "ports": [7002] },
            { "name": "all-of-ipv6", "cidrs": ["::/0"] },
        ]);
        let client = world
            .workload("client")?
            .with_sidecar(&Settings::default().set("outbound.deny", rules))?;
        let _serving = server.serving(
            "serve",
            &["serve", "--listen", &v4.to_string(), "--connections", "1"],
        )?;
        for (host, port, wanted) in [
            (v4.ip(), 7001, "EPERM"),
            (v4.ip(), 7002, "EPERM"),
            (v6.ip(), 7002, "EPERM"),
            (v6.ip(), 7000, "EPERM"),
            // A range of IPv6 does not mean IPv4, and other ports stay open.
            (v4.ip(), 7000, "connected"),
        ] {
            let got = connect(&client, &host.to_string(), port)?;
            ensure!(got == wanted, "{host} {port}: {got}, not {wanted}");
        }
        // Loopback leaves nothing.
        let local = connect(&client, "127.0.0.1", 7002)?;
        ensure!(local == "ECONNREFUSED", "{local}");
        ensure!(
            client.metrics()?.kernel_events("denied") == 4,
            "{}",
            client.metrics()?
        );
        let expected = [
            (v4.ip(), 7001, "one-address"),
            (v4.ip(), 7002, "every-address"),
            (v6.ip(), 7000, "all-of-ipv6"),
        ];
        wait::until_true("the denials in the log", Duration::from_secs(5), || {
            let log = client.sidecar()?.log()?;
            Ok(expected.iter().all(|(ip, port, rule)| {
                let destination = std::net::SocketAddr::new(*ip, *port).to_string();
                log.lines().any(|line| {
                    line.contains("denied") && line.contains(&destination) && line.contains(rule)
                })
            }))
        })
    });
}
