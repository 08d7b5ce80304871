//! Too many connections, too few descriptors, and the end of the process.

use std::{
    fs::File,
    io::Write,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::world::{PATIENCE, SOON, World, echo, expect_reset, ping, snapshot, wait_until};

/// Set in the child process of a test that needs a process of its own.
const CHILD: &str = "SIDECAR_TEST_CHILD";

#[test]
fn connections_beyond_the_limit_are_shed() {
    let mut snapshot = snapshot();
    snapshot.limits.connections = Some(3);
    let world = World::with(snapshot, echo());
    let mut held: Vec<_> = (0..3).map(|_| world.connect()).collect();
    for client in &mut held {
        ping(client, b"\x01in");
    }
    world.expect_refusal();
    held.pop();
    wait_until("a place is free", || world.handle.connections() == 2);
    ping(&mut world.connect(), b"\x01in again");
    drop(held);
    let lines = world.finish();
    let shed = lines
        .iter()
        .filter(|line| line["reason"] == "connection_limit")
        .count();
    assert_eq!((lines.len(), shed), (5, 1));
}

#[test]
fn a_drain_waits_and_then_resets() {
    let mut snapshot = snapshot();
    // Enough for what goes on meanwhile.
    snapshot.timeouts.drain = Duration::from_secs(5);
    let world = World::with(snapshot, echo());
    let (mut short, mut long) = (world.connect(), world.connect());
    ping(&mut short, b"\x01short");
    ping(&mut long, b"\x01long");
    world.handle.drain();
    thread::sleep(Duration::from_millis(100));
    // What runs goes on, and the application still gets new connections.
    ping(&mut short, b"\x01still");
    ping(&mut world.connect(), b"\x01new");
    drop(short);
    let start = Instant::now();
    expect_reset(&mut long);
    assert!(start.elapsed() < 2 * SOON);
    let lines = world.finish();
    let of = |reason: &str| lines.iter().filter(|line| line["reason"] == reason).count();
    assert_eq!(
        (of("ok"), of("drain_deadline"), lines.len()),
        (2, 1, 3),
        "{lines:#?}"
    );
}

#[test]
fn an_end_at_once_does_not_wait() {
    let mut snapshot = snapshot();
    snapshot.timeouts.drain = 2 * PATIENCE;
    let world = World::with(snapshot, echo());
    let mut client = world.connect();
    ping(&mut client, b"\x01long");
    let start = Instant::now();
    world.handle.end_now();
    expect_reset(&mut client);
    assert!(start.elapsed() < SOON);
    assert_eq!(world.finish_with_one()["reason"], "drain_deadline");
}

/// Without descriptors `accept` fails at once, again and again: the proxy must neither spin nor stop.
#[test]
fn accept_backs_off_without_descriptors() {
    if std::env::var_os(CHILD).is_none() {
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "proxy::limits::accept_backs_off_without_descriptors",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(
            child.status.success(),
            "{said}\n{}",
            String::from_utf8_lossy(&child.stderr)
        );
        assert!(
            said.contains("1 passed"),
            "the child ran another test: {said}"
        );
        return;
    }
    let world = World::new(echo());
    let mut first = world.connect();
    ping(&mut first, b"\x01before");
    let hard = getrlimit(Resource::Nofile).maximum;
    let limit = |count: u64| {
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(count),
                maximum: hard,
            },
        )
    };
    // Whatever was inherited, and wherever the numbers have holes: at least these are free below the limit. All are taken
    // but the one that the client's own socket needs.
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    limit(open + 16).unwrap();
    let mut taken: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    taken.pop().expect("there were some left");
    let mut second = world.connect();
    let errors = || world.metric("sidecar_accept_errors_total", &["emfile"]);
    let spent = cpu_time();
    thread::sleep(Duration::from_secs(2));
    let (failed, spent) = (errors(), cpu_time() - spent);
    // 5 + 10 + ... + 640 ms and then each second: about nine, not thousands, and hardly any work.
    assert!((3.0..=50.0).contains(&failed), "{failed} failed accepts");
    assert!(spent < Duration::from_secs(1), "{spent:?} of CPU");
    ping(&mut first, b"\x01meanwhile");
    drop(taken);
    limit(hard.unwrap_or(4096)).unwrap();
    second.write_all(b"\x01").unwrap();
    ping(&mut second, b"");
    wait_until("the waiting connection is served", || {
        world.handle.connections() == 2
    });
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
