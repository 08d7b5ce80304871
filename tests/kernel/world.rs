//! The world itself, and the traffic programs over plain TCP: where no sidecar is, everything must pass.

use std::time::Duration;

use anyhow::{Result, ensure};
use sidecar_tests::{
    report::Report,
    world::{World, cgroup, wait},
};

use crate::integrity::{Ends, exchange};

#[test]
fn plain_tcp_is_byte_exact() {
    World::play(|world| {
        let (a, b) = (world.workload("a")?, world.workload("b")?);
        for (mode, address) in [("blocking", b.v4(7000)), ("nonblocking", b.v6(7000))] {
            let ends = Ends {
                client: &a,
                server: &b,
                listen: address,
                to: address,
            };
            let (client, server) = exchange(&ends, mode, &["--connections", "300"], &[], &[])?;
            client.expect_exact(300)?;
            server.expect_exact(300)?;
            ensure!(
                client.sent_bytes == server.received_bytes,
                "{client:?} {server:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn every_reader_reads_plain_tcp() {
    World::play(|world| {
        let a = world.workload("a")?;
        for how in crate::readers::WAYS {
            let address = a.v4(7000);
            let ends = Ends {
                client: &a,
                server: &a,
                listen: address,
                to: address,
            };
            let more = ["--connections", "40", "--style", "duplex"];
            let (client, server) =
                exchange(&ends, "blocking", &more[..2], &["--how", how], &more[2..])?;
            client.expect_exact(40)?;
            server.expect_exact(40)?;
            let odd = [
                "spurious_eagain",
                "short_wait_all",
                "below_low_water",
                "fionread_zero",
                "fionread_too_much",
                "early_timeout",
            ];
            ensure!(
                odd.iter().all(|name| server.oddity(name) == 0),
                "{how}: {server:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn programs_die_with_their_world_and_nothing_is_left() -> Result<()> {
    let mut pid = 0;
    let mut path = None;
    World::play(|world| {
        let a = world.workload("a")?;
        // Not a child of the test, and deaf to SIGTERM.
        let shell = "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 1000' & echo $!; wait";
        let mut running = a.start("orphan", "sh", &["-c", shell])?;
        pid = wait::until("a pid", Duration::from_secs(60), || {
            Ok(running.stdout()?.trim().parse::<u32>().ok())
        })?;
        ensure!(running.ended()?.is_none());
        path = Some(a.cgroup().to_owned());
        Ok(())
    });
    ensure!(
        !path.is_some_and(|path| path.exists()),
        "the control group is still there"
    );
    ensure!(
        !std::path::Path::new(&format!("/proc/{pid}/ns/net")).exists(),
        "the orphan lives on"
    );
    ensure!(cgroup::root()?.join("cgroup.procs").is_file());
    Ok(())
}

#[test]
fn a_report_tells_whether_everything_was_exact() {
    let report = Report {
        completed: 3,
        ..Report::default()
    };
    assert!(report.expect_exact(3).is_ok() && report.expect_exact(4).is_err());
}
