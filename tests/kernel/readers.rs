//! Every way to read: none hangs or misreads. What the kernel cannot give is counted, and where it can be detected, the
//! flow is opted out.

use std::time::Duration;

use anyhow::{Result, ensure};
use sidecar_tests::{
    report::Report,
    world::{Settings, Workload, World, programs},
};

use crate::integrity::{Ends, always, exchange};

/// As `traffic --how` names them.
pub const WAYS: [&str; 10] = [
    "plain",
    "splice",
    "wait-all",
    "low-water",
    "peek",
    "uring",
    "fionread",
    "poll",
    "epoll-edge",
    "timeout",
];

const CONNECTIONS: &str = "200";
/// Longer than anything takes.
const SOON: Duration = Duration::from_secs(90);

/// Both ends read in one way; each sleeps in `send` with one thread and reads with another.
fn read_exactly(how: &str) {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&always())?;
        let b = world.workload("b")?.with_sidecar(&always())?;
        for (client, server) in [(&a, &b), (&a, &a)] {
            let (client, server) = read(how, client, server)?;
            client.expect_exact(200)?;
            server.expect_exact(200)?;
            println!("{how}: {:?} {:?}", client.oddities, server.oddities);
        }
        ensure!(
            a.metrics()?.kernel_events("redirected") > 0,
            "nothing was redirected: {}",
            a.metrics()?
        );
        a.sidecar()?.expect_no_panic()
    });
}

fn read(how: &str, client: &Workload<'_>, server: &Workload<'_>) -> Result<(Report, Report)> {
    let address = server.v4(7000);
    let ends = Ends {
        client,
        server,
        listen: address,
        to: address,
    };
    // Those that wait for a number of bytes cannot play scripts in which the other end waits for an answer.
    let style = if matches!(how, "wait-all" | "low-water") {
        "duplex"
    } else {
        "any"
    };
    let both = [
        "--connections",
        CONNECTIONS,
        "--how",
        how,
        "--deadline-seconds",
        "200",
    ];
    exchange(&ends, "blocking", &both, &[], &["--style", style])
}

#[test]
fn blocking_full_duplex_with_threads() {
    read_exactly("plain");
}

#[test]
fn msg_waitall() {
    read_exactly("wait-all");
}

#[test]
fn so_rcvlowat() {
    read_exactly("low-water");
}

#[test]
fn msg_peek() {
    read_exactly("peek");
}

#[test]
fn io_uring() {
    read_exactly("uring");
}

#[test]
fn fionread() {
    read_exactly("fionread");
}

#[test]
fn poll_level_triggered() {
    read_exactly("poll");
}

#[test]
fn epoll_edge_triggered() {
    read_exactly("epoll-edge");
}

#[test]
fn so_rcvtimeo() {
    read_exactly("timeout");
}

/// Readers of tokio and nginx wait for the next edge after a short read. A redirected message ends a read early although
/// bytes of TCP wait behind it: they must not wait for ever.
#[test]
fn hasty_epoll() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&always())?;
        let b = world.workload("b")?.with_sidecar(&always())?;
        for (client, server) in [(&a, &b), (&a, &a)] {
            for address in [server.v4(7000), server.v6(7000)] {
                let ends = Ends {
                    client,
                    server,
                    listen: address,
                    to: address,
                };
                let both = ["--connections", "1000", "--deadline-seconds", "200"];
                let (client, server) = exchange(&ends, "hasty", &both, &[], &[])?;
                client.expect_exact(1000)?;
                server.expect_exact(1000)?;
            }
        }
        Ok(())
    });
}

/// Accepts, makes the socket non-blocking a moment later, as asyncio and Java NIO do, and reads what `FIONREAD` promises, as
/// nginx does: 0 means that nothing is there. Says how many have been answered. Arguments: address, port.
const LATE: &str = r#"
import fcntl, select, socket, struct, sys, termios, time
l = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=256)
l.setblocking(False)
ep, held = select.epoll(), {}
ep.register(l, select.EPOLLIN)
print("listening", flush=True)
while True:
    for fd, _ in ep.poll():
        if fd == l.fileno():
            c, _ = l.accept()
            # Accepted sockets block in Python until somebody says otherwise.
            c.setblocking(True)
            time.sleep(0.005)
            c.setblocking(False)
            held[c.fileno()] = [c, 0]
            ep.register(c, select.EPOLLIN | select.EPOLLET)
            continue
        c, got = held[fd]
        while (waiting := struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"0000"))[0]):
            got += len(c.recv(waiting))
        held[fd][1] = got
        if got == 1400: c.send(b"ok"); held[fd][1] = 0
"#;

/// Two requests on each of 100 connections. Arguments: address, port.
const ASK: &str = r#"
import socket, sys
lost = 0
for _ in range(100):
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
    s.settimeout(2)
    try:
        for _ in range(2):
            s.sendall(b"x" * 700); s.sendall(b"y" * 700)
            assert s.recv(10) == b"ok"
    except OSError: lost += 1
print("lost", lost, flush=True)
"#;

/// Bytes that are left to TCP are found by who asks for their number: its socket has left the map by then.
#[test]
fn fionread_of_a_socket_that_is_nonblocking_late() {
    are_all_answered(&always());
}

/// Where only what applications send is to be redirected, their sockets stay out of the map if its kernel does not count for them.
#[test]
fn fionread_at_a_lower_level() {
    are_all_answered(&always().set("redirect.level", "towards-proxies"));
}

fn are_all_answered(settings: &Settings) {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(settings)?;
        let b = world.workload("b")?.with_sidecar(settings)?;
        let python = programs::packaged("python3", "python3")?;
        let (ip, port) = (b.v4(7000).ip().to_string(), "7000");
        let mut server = b.start("late", python.clone(), &["-c", LATE, &ip, port])?;
        server.line_within("listening", SOON)?;
        let client = a.start("ask", python, &["-c", ASK, &ip, port])?;
        let lost = client.finish(SOON)?.success()?.stdout;
        ensure!(lost.trim() == "lost 0", "{lost}");
        Ok(())
    });
}

/// Reads what `FIONREAD` promises when epoll has an edge, and answers each 100 bytes. What begins with P has it pause. Arguments:
/// address, port.
const PAUSING: &str = r#"
import fcntl, select, socket, struct, sys, termios, time
l = socket.create_server((sys.argv[1], int(sys.argv[2])))
l.setblocking(False)
print("listening", flush=True)
select.select([l], [], [])
fd, _ = l._accept()
c = socket.socket(fileno=fd); c.setblocking(False)
ep = select.epoll(); ep.register(c, select.EPOLLIN | select.EPOLLET)
got = answered = 0
while True:
    ep.poll()
    while (waiting := struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"0000"))[0]):
        data = c.recv(min(waiting, 100)); got += len(data)
        if data[:1] == b"P": time.sleep(2)
        while got - answered >= 100:
            c.send(b"k"); answered += 100
"#;

/// Exchanges messages until hops are joined; then has the server pause, and somebody else of its workload splice, with bytes on
/// their way before and after that. Arguments: address, port, port of who splices.
const BEFORE_AND_AFTER: &str = r#"
import socket, sys, time
address = sys.argv[1]
s = socket.create_connection((address, int(sys.argv[2])), 5)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
s.settimeout(10)
def answers(count):
    while count: count -= len(s.recv(count))
try:
    for _ in range(200): s.sendall(b"x" * 100); answers(1)
    s.sendall(b"P" + b"x" * 99); time.sleep(0.2)
    s.sendall(b"y" * 700); time.sleep(0.2)
    other = socket.create_connection((address, int(sys.argv[3])), 5)
    other.sendall(b"z" * 100); time.sleep(0.5)
    s.sendall(b"y" * 700)
    answers(15)
    for _ in range(50): s.sendall(b"x" * 100); answers(1)
    print("answered", flush=True)
except OSError as e: print("not answered:", e, flush=True)
"#;

/// Nothing is redirected to a workload once somebody of it splices: its connections that got something before are read to the end.
fn are_read_to_the_end(settings: &Settings) {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(settings)?;
        let b = world.workload("b")?.with_sidecar(settings)?;
        let python = programs::packaged("python3", "python3")?;
        let ip = b.v4(7000).ip().to_string();
        let mut server = b.start("pausing", python.clone(), &["-c", PAUSING, &ip, "7000"])?;
        server.line_within("listening", SOON)?;
        let address = b.v4(7001).to_string();
        let arguments = ["--listen", &address, "--way", "call"];
        let mut splicer = b.start("splicer", programs::own("splicer")?, &arguments)?;
        splicer.line_within("listening", SOON)?;
        let client = ["-c", BEFORE_AND_AFTER, &ip, "7000", "7001"];
        let client = a.start("client", python, &client)?;
        let said = client.finish(SOON)?.success()?.stdout;
        ensure!(said.trim() == "answered", "{said}");
        let metrics = b.metrics()?;
        ensure!(
            metrics.kernel_events("splice") == 1,
            "nobody spliced: {metrics}"
        );
        Ok(())
    });
}

#[test]
fn a_connection_is_read_to_the_end_when_others_splice() {
    are_read_to_the_end(&always());
}

#[test]
fn a_joined_connection_is_read_to_the_end_when_others_splice() {
    are_read_to_the_end(&always().protocol(7000, "tcp"));
}

/// splice(2) never sees redirected bytes. The first flows may be caught by it: they end with an error, they do not
/// hang and do not lie. From then on the workload is known to splice and everything is exact.
#[test]
fn splice_is_detected() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&always())?;
        let b = world.workload("b")?.with_sidecar(&always())?;
        let (client, server) = read("splice", &a, &b)?;
        println!("first: {client:?}\n{server:?}");
        ensure!(
            client.corrupted + server.corrupted == 0,
            "misread: {client:?} {server:?}"
        );
        let hung = |report: &Report| {
            report
                .failures
                .iter()
                .any(|failure| failure.starts_with("hung"))
        };
        ensure!(
            !hung(&client) && !hung(&server),
            "hung: {client:?} {server:?}"
        );
        let (client, server) = read("splice", &a, &b)?;
        client.expect_exact(200)?;
        server.expect_exact(200)
    });
}

/// A port that is opted out behaves as TCP does, to the last oddity.
#[test]
fn an_excluded_port_stays_on_tcp() {
    World::play(|world| {
        let settings = Settings::default().push("redirect.exclude.ports", 7000);
        let a = world.workload("a")?.with_sidecar(&settings)?;
        let b = world.workload("b")?.with_sidecar(&settings)?;
        for how in WAYS {
            let (client, server) = read(how, &a, &b)?;
            client.expect_exact(200)?;
            server.expect_exact(200)?;
            let odd = [
                "spurious_eagain",
                "short_wait_all",
                "below_low_water",
                "fionread_zero",
                "fionread_too_much",
                "early_timeout",
            ];
            let odd = odd
                .iter()
                .map(|name| client.oddity(name) + server.oddity(name))
                .sum::<u64>();
            ensure!(odd == 0, "{how}: {client:?} {server:?}");
        }
        Ok(())
    });
}
