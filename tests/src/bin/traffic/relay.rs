//! A relay that damages what it carries, to show that the checker sees it.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
};

use anyhow::Result;
use clap::{Args, ValueEnum};
use sidecar_tests::output::say;

use crate::connect;

#[derive(Args)]
pub struct Relay {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    to: SocketAddr,
    #[arg(long)]
    fault: Fault,
    /// Damage the first block at or after this offset of the upward direction.
    #[arg(long, default_value_t = 5000)]
    at_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Fault {
    None,
    /// A block is left out.
    Lose,
    /// A block comes twice.
    Repeat,
    /// Two blocks change places.
    Reorder,
    /// The stream ends early.
    Truncate,
    /// One bit changes.
    Change,
}

const BLOCK_BYTES: usize = 512;

impl Relay {
    /// Serves until it is killed.
    pub fn run(self) -> Result<()> {
        let listener = connect::listen(self.listen, false)?;
        say(format_args!("listening {}", listener.local_addr()?))?;
        loop {
            let (client, _) = listener.accept()?;
            let server = connect::dial(self.to, &connect::Dial::default())?;
            client.set_nodelay(true)?;
            let (client_too, server_too) = (client.try_clone()?, server.try_clone()?);
            let (fault, at_bytes) = (self.fault, self.at_bytes);
            // Either direction ends by itself; what a test sees is what the ends of the connection see.
            thread::spawn(move || carry(&server_too, &client_too, Fault::None, 0));
            thread::spawn(move || carry(&client, &server, fault, at_bytes));
        }
    }
}

/// Copies `from` to `to` in blocks until the end, with one fault on the way.
fn carry(
    mut from: &TcpStream,
    mut to: &TcpStream,
    fault: Fault,
    at_bytes: u64,
) -> std::io::Result<()> {
    let (mut carried, mut pending) = (0, Some(fault));
    let mut block = [0; BLOCK_BYTES];
    loop {
        let count = fill(from, &mut block, pending)?;
        if count == 0 {
            return to.shutdown(Shutdown::Write);
        }
        let due = carried >= at_bytes && count == BLOCK_BYTES;
        carried += count as u64;
        let block = &mut block[..count];
        match pending.take_if(|_| due) {
            None | Some(Fault::None) => to.write_all(block)?,
            Some(Fault::Lose) => {}
            Some(Fault::Repeat) => {
                to.write_all(block)?;
                to.write_all(block)?;
            }
            Some(Fault::Reorder) => {
                let mut next = [0; BLOCK_BYTES];
                let count = fill(from, &mut next, None)?;
                to.write_all(&next[..count])?;
                to.write_all(block)?;
            }
            Some(Fault::Truncate) => {
                to.shutdown(Shutdown::Write)?;
                return std::io::copy(&mut from, &mut std::io::sink()).map(drop);
            }
            Some(Fault::Change) => {
                block[BLOCK_BYTES / 2] ^= 1;
                to.write_all(block)?;
            }
        }
    }
}

/// A whole block while a fault is pending, so that it can be exact; else whatever comes.
fn fill(mut from: &TcpStream, block: &mut [u8], pending: Option<Fault>) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        let count = from.read(&mut block[filled..])?;
        filled += count;
        if count == 0 || matches!(pending, None | Some(Fault::None)) {
            break;
        }
    }
    Ok(filled)
}
