//! The integrity checker itself: silent over an honest connection, and not over one that loses, repeats,
//! reorders, cuts or changes bytes. If this fails, no other integrity test means anything.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Result, ensure};
use sidecar_tests::{
    report::Report,
    stream::CorruptionKind,
    world::process::{Finished, Running},
};

/// Its first connection carries some hundred KiB upwards.
const SEED: &str = "1";
const LIMIT: Duration = Duration::from_secs(90);

/// A `traffic` program on the loopback interface.
fn traffic(logs: &Path, name: &str, arguments: &[&str]) -> Result<Running> {
    Running::start(
        name,
        logs,
        Command::new(env!("CARGO_BIN_EXE_traffic")).args(arguments),
    )
}

fn listening(program: &mut Running) -> Result<String> {
    Ok(program.line("listening ")?.replace("listening ", ""))
}

/// Runs `connections` through a relay with `fault`: the reports of the server and of the client.
fn through_relay(
    fault: &str,
    connections: u64,
    mode: &str,
    seed: &str,
) -> Result<(Report, Report)> {
    let logs = tempfile::tempdir()?;
    let count = connections.to_string();
    let mut serve = vec![
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--connections",
        &count,
        "--deadline-seconds",
        "80",
    ];
    serve.extend(["--mode", mode]);
    let mut server = traffic(logs.path(), "server", &serve)?;
    let address = listening(&mut server)?;
    let mut relay = traffic(
        logs.path(),
        "relay",
        &[
            "relay",
            "--listen",
            "127.0.0.1:0",
            "--to",
            &address,
            "--fault",
            fault,
        ],
    )?;
    let address = listening(&mut relay)?;
    let mut drive = vec![
        "drive",
        "--to",
        &address,
        "--connections",
        &count,
        "--style",
        "duplex",
        "--deadline-seconds",
        "80",
    ];
    drive.extend(["--mode", mode, "--seed", seed]);
    let client = traffic(logs.path(), "client", &drive)?
        .finish(LIMIT)?
        .success()?;
    let server = server.finish(LIMIT)?.success()?;
    Ok((server.account()?, client.account()?))
}

/// One connection that is long enough for the fault, damaged on its way to the server.
fn damaged(fault: &str) -> Result<CorruptionKind> {
    let (server, _) = through_relay(fault, 1, "blocking", SEED)?;
    ensure!(
        server.received_bytes > 4000,
        "seed {SEED} is too short a connection: {server:?}"
    );
    ensure!(
        server.corrupted == 1 && server.completed == 0,
        "{fault} went unnoticed: {server:?}"
    );
    Ok(server.corruptions[0].kind)
}

#[test]
fn an_honest_relay_is_byte_exact() -> Result<()> {
    for mode in ["blocking", "nonblocking", "hasty"] {
        let (server, client) = through_relay("none", 100, mode, SEED)?;
        server.expect_exact(100)?;
        client.expect_exact(100)?;
        assert_eq!(
            (server.sent_bytes, server.received_bytes),
            (client.received_bytes, client.sent_bytes)
        );
        assert_eq!(
            server.oddity("spurious_eagain") + client.oddity("spurious_eagain"),
            0
        );
    }
    Ok(())
}

#[test]
fn loss_is_seen() -> Result<()> {
    assert!(matches!(damaged("lose")?, CorruptionKind::Ahead { .. }));
    Ok(())
}

#[test]
fn repetition_is_seen() -> Result<()> {
    assert!(matches!(
        damaged("repeat")?,
        CorruptionKind::Repeated { .. }
    ));
    Ok(())
}

#[test]
fn reordering_is_seen() -> Result<()> {
    assert!(matches!(damaged("reorder")?, CorruptionKind::Ahead { .. }));
    Ok(())
}

#[test]
fn truncation_is_seen() -> Result<()> {
    assert!(matches!(
        damaged("truncate")?,
        CorruptionKind::Truncated { .. }
    ));
    Ok(())
}

#[test]
fn a_changed_bit_is_seen() -> Result<()> {
    assert!(matches!(damaged("change")?, CorruptionKind::Foreign));
    Ok(())
}

/// What the programs say when a connection hangs names how far it came.
#[test]
fn a_hang_is_told() -> Result<()> {
    let logs = tempfile::tempdir()?;
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = silent.local_addr()?.to_string();
    let client = traffic(
        logs.path(),
        "client",
        &[
            "drive",
            "--to",
            &address,
            "--connections",
            "1",
            "--style",
            "turns",
            "--deadline-seconds",
            "1",
        ],
    )?;
    let client: Finished = client.finish(LIMIT)?.success()?;
    let report: Report = client.account()?;
    assert!(
        report.failed == 1 && report.failures[0].starts_with("hung"),
        "{report:?}"
    );
    Ok(())
}
