//! The ways in which programs read from a socket, and what each of them may rely on.

use std::{
    io::{self, Read},
    net::TcpStream,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use clap::ValueEnum;
use rustix::{
    event::{PollFd, PollFlags, Timespec, epoll, poll},
    net::{RecvFlags, recv},
    pipe::{SpliceFlags, pipe, splice},
};
use sidecar_tests::{
    report::Board,
    sys::{RingReader, set_receive_low_water},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum How {
    /// `read`, blocking.
    Plain,
    /// `splice` into a pipe, as io.Copy of Go and HAProxy do.
    Splice,
    /// `recv` with `MSG_WAITALL`.
    WaitAll,
    /// `SO_RCVLOWAT` and `poll`.
    LowWater,
    /// `recv` with `MSG_PEEK`, then the same bytes again.
    Peek,
    /// A receive operation of io_uring.
    Uring,
    /// `poll`, then exactly what `FIONREAD` promises.
    Fionread,
    /// Non-blocking with level-triggered `poll`.
    Poll,
    /// Non-blocking with edge-triggered `epoll`.
    EpollEdge,
    /// `SO_RCVTIMEO`.
    Timeout,
}

/// Reads one connection in one of the ways; what is odd but allowed is counted on the board.
pub enum Reader {
    Plain,
    Splice {
        into: OwnedFd,
        from: OwnedFd,
    },
    WaitAll,
    LowWater {
        set_bytes: usize,
    },
    Peek,
    Uring(Box<RingReader>),
    Fionread,
    Poll,
    /// `ready`: the last read did not come up empty, so no new edge may come.
    EpollEdge {
        epoll: OwnedFd,
        ready: bool,
    },
    Timeout,
}

/// Long enough to be told from a spurious wake-up, short enough to happen during pauses.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(20);

impl Reader {
    /// Prepares `stream` for being read like this.
    pub fn new(how: How, stream: &TcpStream) -> io::Result<Self> {
        Ok(match how {
            How::Plain => Self::Plain,
            How::Splice => {
                let (from, into) = pipe()?;
                Self::Splice { into, from }
            }
            How::WaitAll => Self::WaitAll,
            How::LowWater => Self::LowWater { set_bytes: 1 },
            How::Peek => Self::Peek,
            How::Uring => Self::Uring(Box::new(RingReader::new()?)),
            How::Fionread => Self::Fionread,
            How::Poll => {
                stream.set_nonblocking(true)?;
                Self::Poll
            }
            How::EpollEdge => {
                stream.set_nonblocking(true)?;
                let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
                let flags =
                    epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
                epoll::add(&epoll, stream, epoll::EventData::new_u64(0), flags)?;
                Self::EpollEdge { epoll, ready: true }
            }
            How::Timeout => {
                stream.set_read_timeout(Some(RECEIVE_TIMEOUT))?;
                Self::Timeout
            }
        })
    }

    /// Some bytes into `buffer`, 0 at the end of the stream. `remaining_bytes` are still to come: what waits for a
    /// number of bytes must not wait for more.
    pub fn read(
        &mut self,
        mut stream: &TcpStream,
        buffer: &mut [u8],
        remaining_bytes: u64,
        board: &Board,
    ) -> io::Result<usize> {
        let sure = (buffer.len() as u64).min(remaining_bytes.max(1)) as usize;
        match self {
            Self::Plain => retried(board, || stream.read(buffer)),
            Self::Splice { into, from } => {
                let count = splice(
                    stream,
                    None,
                    &*into,
                    None,
                    buffer.len(),
                    SpliceFlags::empty(),
                )?;
                let mut taken = 0;
                while taken < count {
                    taken += rustix::io::read(&*from, &mut buffer[taken..count])?;
                }
                Ok(count)
            }
            Self::WaitAll => {
                let count = retried(board, || {
                    received(stream, &mut buffer[..sure], RecvFlags::WAITALL)
                })?;
                if (1..sure).contains(&count) {
                    board.odd("short_wait_all");
                }
                Ok(count)
            }
            Self::LowWater { set_bytes } => {
                if *set_bytes != sure {
                    set_receive_low_water(stream, i32::try_from(sure).unwrap_or(i32::MAX))?;
                    *set_bytes = sure;
                }
                readable(stream)?;
                let count = retried(board, || stream.read(&mut buffer[..sure]))?;
                if (1..sure).contains(&count) {
                    board.odd("below_low_water");
                }
                Ok(count)
            }
            Self::Peek => {
                let count = retried(board, || received(stream, buffer, RecvFlags::PEEK))?;
                let peeked = buffer[..count].to_vec();
                retried(board, || stream.read_exact(&mut buffer[..count]))?;
                if buffer[..count] != peeked {
                    return Err(io::Error::other(
                        "the bytes read are not the bytes peeked at",
                    ));
                }
                Ok(count)
            }
            Self::Uring(ring) => retried(board, || ring.receive(stream, buffer)),
            Self::Fionread => {
                readable(stream)?;
                let promised = rustix::io::ioctl_fionread(stream)? as usize;
                // Nothing promised should mean the end; somebody who takes it for that is wrong if bytes come.
                let wanted = if promised == 0 {
                    buffer.len()
                } else {
                    promised.min(buffer.len())
                };
                let count = retried(board, || stream.read(&mut buffer[..wanted]))?;
                match promised {
                    0 if count > 0 => board.odd("fionread_zero"),
                    1.. if count < wanted => board.odd("fionread_too_much"),
                    _ => {}
                }
                Ok(count)
            }
            Self::Poll => loop {
                readable(stream)?;
                match stream.read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        board.odd("poll_without_data")
                    }
                    result => return result,
                }
            },
            Self::EpollEdge { epoll, ready } => loop {
                if !*ready {
                    let mut events = [epoll::Event {
                        flags: epoll::EventFlags::empty(),
                        data: epoll::EventData::new_u64(0),
                    }];
                    uninterrupted(|| epoll::wait(&*epoll, &mut events, None))?;
                    *ready = true;
                }
                match stream.read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => *ready = false,
                    result => return result,
                }
            },
            Self::Timeout => loop {
                let started = Instant::now();
                match stream.read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        let early = started.elapsed() < RECEIVE_TIMEOUT / 4;
                        board.odd(if early { "early_timeout" } else { "timeout" });
                    }
                    result => return result,
                }
            },
        }
    }
}

/// A blocking receive that says EAGAIN, which TCP never does, is counted and tried again: it is what a socket of a
/// sockmap may do while another thread sleeps in `send` on it.
fn retried<T>(board: &Board, mut receive: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match receive() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => board.odd("spurious_eagain"),
            result => return result,
        }
    }
}

fn received(stream: &TcpStream, buffer: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
    Ok(recv(stream, buffer, flags)?.0)
}

fn readable(stream: &TcpStream) -> io::Result<()> {
    wait_for(stream, PollFlags::IN, None)
}

/// Waits until a non-blocking socket takes bytes.
pub fn writable(stream: &TcpStream) -> io::Result<()> {
    wait_for(stream, PollFlags::OUT, None)
}

/// As [`writable`], but returns after `limit` in any case.
pub fn writable_within(stream: &TcpStream, limit: Duration) -> io::Result<()> {
    wait_for(stream, PollFlags::OUT, Some(limit))
}

fn wait_for(stream: &TcpStream, flags: PollFlags, limit: Option<Duration>) -> io::Result<()> {
    let limit = limit.map(|limit| Timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: limit.subsec_nanos().into(),
    });
    uninterrupted(|| {
        poll(
            &mut [PollFd::from_borrowed_fd(stream.as_fd(), flags)],
            limit.as_ref(),
        )
    })
}

fn uninterrupted<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<()> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result.map(drop)?),
        }
    }
}
