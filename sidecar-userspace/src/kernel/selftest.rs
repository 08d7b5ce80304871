//! The start-up self-test: redirect is switched on only if real sockets show, on this very kernel, that nothing
//! is lost, reordered or queued without bound. Version numbers cannot tell: distributions backport.
//!
//! It runs inside the proxy's cgroup, between two sockets of the proxy, before anything is steered.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use rustix::pipe::{SpliceFlags, pipe, splice};
use serde::Serialize;

/// One property and what was found.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    pub name: &'static str,
    /// What went wrong; `None` if it held.
    pub failure: Option<String>,
}

/// No read or write waits longer.
const PATIENCE: Duration = Duration::from_secs(2);
/// What TCP's own buffers may take beyond the credit: `tcp_rmem[2]` + `tcp_wmem[2]` of large hosts.
const TCP_BUFFERS_BYTES: usize = 48 << 20;
/// The kernel accepts bytes into an unbounded queue at GB/s; without a bound this is reached at once.
const UNBOUNDED_BYTES: usize = 128 << 20;
const BLOCK_BYTES: usize = 64 << 10;

/// What the test needs to know of the kernel half.
pub trait Observer {
    /// Messages redirected so far.
    fn redirected(&mut self) -> Result<u64, String>;
    /// Whether a socket was seen to be read with splice; forgets it.
    fn take_splice(&mut self) -> Result<bool, String>;
}

/// Runs all parts; each on a connection of its own. `credit_bytes`: of the workload.
pub fn run(observer: &mut dyn Observer, credit_bytes: u32) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut part = |name, result: Result<(), String>| {
        findings.push(Finding {
            name,
            failure: result.err(),
        })
    };
    part("redirect", redirect(observer));
    part("order", order_and_credit(credit_bytes));
    part("half-close", half_close());
    part("FIONREAD", readable());
    part("splice", splice_is_noticed(observer));
    findings
}

type Check = Result<(), String>;

fn pair() -> Result<(TcpStream, TcpStream), String> {
    let connect = || -> io::Result<_> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
            socket.set_nodelay(true)?;
        }
        Ok((client, server))
    };
    connect().map_err(|e| format!("cannot make a connection: {e}"))
}

/// The byte at `position` of every test stream.
fn byte(position: usize) -> u8 {
    (position.wrapping_mul(0x9e37_79b1) >> 13) as u8
}

fn block(position: usize, length: usize) -> Vec<u8> {
    (position..position + length).map(byte).collect()
}

fn send(socket: &mut TcpStream, position: &mut usize, length: usize) -> Check {
    socket
        .write_all(&block(*position, length))
        .map_err(|e| format!("write: {e}"))?;
    *position += length;
    Ok(())
}

/// Reads up to `end` and compares every byte.
fn expect(socket: &mut TcpStream, position: &mut usize, end: usize) -> Check {
    let mut buffer = vec![0; BLOCK_BYTES];
    while *position < end {
        let wanted = buffer.len().min(end - *position);
        let read = match socket.read(&mut buffer[..wanted]) {
            Ok(0) => return Err(format!("the stream ends at byte {position} of {end}")),
            Ok(read) => read,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                return Err(format!("nothing arrives after byte {position} of {end}"));
            }
            Err(e) => return Err(format!("read: {e}")),
        };
        if let Some(at) = (0..read).find(|i| buffer[*i] != byte(*position + i)) {
            return Err(format!(
                "byte {} is wrong: bytes were lost or reordered",
                *position + at
            ));
        }
        *position += read;
    }
    Ok(())
}

fn redirect(observer: &mut dyn Observer) -> Check {
    let before = observer.redirected()?;
    let (mut client, mut server) = pair()?;
    let (mut sent, mut received, mut returned, mut answered) = (0, 0, 0, 0);
    for _ in 0..8 {
        send(&mut client, &mut sent, 512)?;
        expect(&mut server, &mut received, sent)?;
        send(&mut server, &mut returned, 512)?;
        expect(&mut client, &mut answered, returned)?;
    }
    match observer.redirected()? - before {
        0 => Err("nothing was redirected".to_owned()),
        _ => Ok(()),
    }
}

/// Without a reader the writer must be stopped; then every byte must come, in order, and after the detour
/// through TCP redirect must be safe again.
fn order_and_credit(credit_bytes: u32) -> Check {
    let (mut client, mut server) = pair()?;
    let (mut sent, mut received) = (0, 0);
    client.set_nonblocking(true).map_err(|e| e.to_string())?;
    while sent < UNBOUNDED_BYTES {
        let piece = block(sent, BLOCK_BYTES);
        match client.write(&piece) {
            Ok(written) => sent += written,
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) => return Err(format!("write: {e}")),
        }
    }
    if sent > credit_bytes as usize + TCP_BUFFERS_BYTES {
        return Err(format!(
            "{sent} bytes were accepted for a reader that does not read"
        ));
    }
    expect(&mut server, &mut received, sent)?;
    client.set_nonblocking(false).map_err(|e| e.to_string())?;
    let (mut returned, mut answered) = (0, 0);
    for length in [1, 512, 100_000, 3, 40_000] {
        send(&mut server, &mut returned, 1)?;
        expect(&mut client, &mut answered, returned)?;
        send(&mut client, &mut sent, length)?;
        send(&mut client, &mut sent, 7)?;
        expect(&mut server, &mut received, sent)?;
    }
    Ok(())
}

fn half_close() -> Check {
    let (mut client, mut server) = pair()?;
    let (mut sent, mut received, mut returned, mut answered) = (0, 0, 0, 0);
    send(&mut client, &mut sent, 1000)?;
    client
        .shutdown(Shutdown::Write)
        .map_err(|e| format!("shutdown: {e}"))?;
    expect(&mut server, &mut received, sent)?;
    match server.read(&mut [0]) {
        Ok(0) => {}
        other => return Err(format!("no end of stream after a half-close: {other:?}")),
    }
    send(&mut server, &mut returned, 1000)?;
    drop(server);
    expect(&mut client, &mut answered, returned)?;
    match client.read(&mut [0]) {
        Ok(0) => Ok(()),
        other => Err(format!("no end of stream after a close: {other:?}")),
    }
}

fn readable() -> Check {
    let (mut client, server) = pair()?;
    send(&mut client, &mut 0, 700)?;
    // What is redirected is there when the sender returns: waiting longer would only make each start slower where it is not
    // counted.
    let deadline = Instant::now() + Duration::from_millis(100);
    loop {
        match rustix::io::ioctl_fionread(&server) {
            Ok(700) => return Ok(()),
            Ok(0) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            other => return Err(format!("700 bytes are queued, FIONREAD says {other:?}")),
        }
    }
}

/// A reader that splices would hang on redirected bytes; it must be noticed the moment it does.
fn splice_is_noticed(observer: &mut dyn Observer) -> Check {
    let (_client, server) = pair()?;
    let (_read_end, write_end) = pipe().map_err(|e| e.to_string())?;
    server.set_nonblocking(true).map_err(|e| e.to_string())?;
    // Nothing to read: it fails, but it was called.
    let _ = splice(&server, None, &write_end, None, 4096, SpliceFlags::NONBLOCK);
    if observer.take_splice()? {
        Ok(())
    } else {
        Err("a splicing reader goes unnoticed".to_owned())
    }
}
