//! A server that reads with splice, by one of the ways there are to say it, and never blocks: waits with `poll`, splices into a
//! pipe, and tells of each connection how many bytes it found, and how it ended.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{SocketFlags, accept_with},
    pipe::{PipeFlags, SpliceFlags, pipe_with, splice},
};
use sidecar_tests::sys::{RingReader, compat_splice};

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    way: Way,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Way {
    /// `splice(2)`
    Call,
    /// The system call of 32-bit programs.
    Compat,
    /// An operation of io_uring.
    Uring,
}

const BLOCK_BYTES: usize = 4096;
/// Readable, and nothing to be had, for so long: this is what hanging looks like.
const HUNG: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let listener = TcpListener::bind(arguments.listen)?;
    // Accepted sockets are judged by their listener until somebody has them.
    listener.set_nonblocking(true)?;
    println!("listening");
    let mut number = 0;
    loop {
        wait_for(&listener, None)?;
        // At once: a socket that blocks when its proxy first looks gets its bytes by TCP.
        let stream = match accept_with(&listener, SocketFlags::NONBLOCK) {
            Err(Errno::AGAIN) => continue,
            accepted => TcpStream::from(accepted?),
        };
        let (bytes, end) = read(&stream, arguments.way)?;
        number += 1;
        println!("{number}: {bytes} bytes, {end}");
    }
}

/// Bytes read, and how it ended.
fn read(stream: &TcpStream, way: Way) -> Result<(usize, String)> {
    let (from, into) = pipe_with(PipeFlags::NONBLOCK)?;
    let mut ring = RingReader::new()?;
    let (mut bytes, mut found) = (0, Instant::now());
    loop {
        if !wait_for(stream, Some(HUNG))? {
            return Ok((bytes, "silent".to_owned()));
        }
        let spliced = match way {
            Way::Call => {
                let flags = SpliceFlags::NONBLOCK;
                splice(stream, None, &into, None, BLOCK_BYTES, flags).map_err(io::Error::from)
            }
            Way::Compat => compat_splice(stream, &into, BLOCK_BYTES as u32),
            Way::Uring => ring.splice(stream, &into, BLOCK_BYTES as u32),
        };
        match spliced {
            Ok(0) => return Ok((bytes, "end".to_owned())),
            Ok(count) => {
                found = Instant::now();
                if !is_due(&drain(&from, count)?, bytes) {
                    return Ok((bytes, "wrong bytes".to_owned()));
                }
                bytes += count;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if found.elapsed() > HUNG {
                    return Ok((bytes, "hung".to_owned()));
                }
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Ok((bytes, format!("{:?}", error.kind()))),
        }
    }
}

fn drain(pipe: &OwnedFd, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    let mut taken = 0;
    while taken < count {
        taken += rustix::io::read(pipe, &mut bytes[taken..])?;
    }
    Ok(bytes)
}

/// Messages of 100 bytes are numbered by each of their bytes.
fn is_due(bytes: &[u8], position: usize) -> bool {
    let mut due = (position..).map(|at| (at / 100) as u8);
    bytes.iter().all(|byte| Some(*byte) == due.next())
}

/// Whether there is something within `limit`.
fn wait_for(socket: &impl AsFd, limit: Option<Duration>) -> Result<bool> {
    let limit = limit.map(Timespec::try_from).transpose()?;
    Ok(poll(&mut [PollFd::new(socket, PollFlags::IN)], limit.as_ref())? > 0)
}
