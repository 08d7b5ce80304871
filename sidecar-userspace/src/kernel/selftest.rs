//! The start-up self-test: redirect is switched on, level by level, only as far as real sockets show, on this very kernel, that
//! nothing is lost, reordered or queued without bound. Version numbers cannot tell: distributions backport.
//!
//! It runs inside the proxy's cgroup, before anything is steered. Sockets that shall be an application's are marked as such.
//!
//! - `stream`, connections and what is sent on them
//! - `applications`, the ways that have an application at one end, or at both

mod applications;
mod stream;

use std::{
    io::{ErrorKind, Write},
    net::Shutdown,
    os::fd::BorrowedFd,
};

use rustix::pipe::{SpliceFlags, pipe, splice};
use sidecar_common::socket_state::SocketState;

use self::stream::{BLOCK_BYTES, Check, block, expect, expect_end, pair, send};
use super::proof::{Finding, Proof};
use crate::model::Level;

/// What TCP's own buffers may take beyond the credit: `tcp_rmem[2]` + `tcp_wmem[2]` of large hosts.
const TCP_BUFFERS_BYTES: usize = 48 << 20;
/// The kernel accepts bytes into an unbounded queue at GB/s; without a bound this is reached at once.
const UNBOUNDED_BYTES: usize = 128 << 20;

/// What the test needs to know of the kernel half, and of it.
pub trait Observer {
    /// Messages redirected so far.
    fn redirected(&mut self) -> Result<u64, String>;
    /// Of those, how many went past the proxies.
    fn joined(&mut self) -> Result<u64, String>;
    /// Resets the connection of whoever was seen to read without seeing what is there. `false`: nobody was.
    fn reset_blind(&mut self) -> Result<bool, String>;
    /// Whether a socket was seen to be read with splice; forgets it.
    fn take_splice(&mut self) -> Result<bool, String>;
    /// Has a socket of ours taken for an application's. `state`: beside the workload.
    fn mark(&mut self, socket: BorrowedFd<'_>, state: SocketState) -> Result<(), String>;
    /// From now on redirect goes so far, for connections that are new.
    fn allow(&mut self, level: Level) -> Result<(), String>;
}

/// Runs all parts, each on connections of its own, as long as it makes sense. `credit_bytes`: of the workload.
pub fn run(observer: &mut dyn Observer, credit_bytes: u32) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut part = |name, result: Check| {
        let held = result.is_ok();
        findings.push(Finding {
            name,
            failure: result.err(),
        });
        held
    };
    let always = [
        part(Proof::Redirect, redirect(observer)),
        part(Proof::Order, order_and_credit(credit_bytes)),
        part(Proof::HalfClose, half_close()),
        part(Proof::Splice, splice_is_noticed(observer)),
    ];
    if always.contains(&false) {
        return findings;
    }
    let towards = [
        part(
            Proof::Applications,
            applications::towards(observer, credit_bytes),
        ),
        part(Proof::Fionread, applications::fionread(observer)),
        part(Proof::BackToTcp, applications::back_to_tcp(observer)),
        part(Proof::BlindReader, applications::blind_reader(observer)),
    ];
    if !towards.contains(&false) {
        part(Proof::Joined, applications::joined(observer));
    }
    // The last one, as it is at a level of its own. Where it fails the next level still holds.
    part(
        Proof::FionreadOfTcp,
        applications::fionread_of_tcp(observer),
    );
    findings
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
    expect_end(&mut server)?;
    send(&mut server, &mut returned, 1000)?;
    drop(server);
    expect(&mut client, &mut answered, returned)?;
    expect_end(&mut client)
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
