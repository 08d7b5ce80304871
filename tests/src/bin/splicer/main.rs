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
        let (stream, _) = match listener.accept() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            accepted => accepted?,
        };
        stream.set_nonblocking(true)?;
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
                bytes += count;
                found = Instant::now();
                drain(&from, count)?;
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

fn drain(pipe: &OwnedFd, mut count: usize) -> io::Result<()> {
    let mut buffer = [0; BLOCK_BYTES];
    while count > 0 {
        count -= rustix::io::read(pipe, &mut buffer)?;
    }
    Ok(())
}

/// Whether there is something within `limit`.
fn wait_for(socket: &impl AsFd, limit: Option<Duration>) -> Result<bool> {
    let limit = limit.map(Timespec::try_from).transpose()?;
    Ok(poll(&mut [PollFd::new(socket, PollFlags::IN)], limit.as_ref())? > 0)
}
