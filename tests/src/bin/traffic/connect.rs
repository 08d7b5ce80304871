//! Sockets as the programs want them.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use sidecar_tests::sys;
use socket2::{Domain, Protocol, Socket, Type};

/// How to reach the other end.
#[derive(Debug, Clone, Default)]
pub struct Dial {
    pub fast_open: bool,
    /// Local port; any if `None`.
    pub source_port: Option<u16>,
    /// `O_NONBLOCK` from the start: see [`Patient`].
    pub nonblocking: bool,
}

/// A socket that does not block, for programs that wait: they `poll`.
pub struct Patient(pub TcpStream);

impl Patient {
    fn wait<T>(
        &self,
        events: PollFlags,
        attempt: impl Fn(&TcpStream) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match attempt(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0, events)], None)?;
                }
                result => return result,
            }
        }
    }
}

impl Read for Patient {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        // `&TcpStream` reads as well, and is not borrowed for the wait.
        let space = std::cell::RefCell::new(space);
        self.wait(PollFlags::IN, |mut socket| {
            socket.read(&mut space.borrow_mut())
        })
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait(PollFlags::OUT, |mut socket| socket.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A listener with a long backlog that can be bound again at once.
pub fn listen(address: SocketAddr, fast_open: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if fast_open {
        sys::set_fast_open_listen(&socket)?;
    }
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// A connection without Nagle's delay.
pub fn dial(address: SocketAddr, how: &Dial) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if let Some(port) = how.source_port {
        socket.set_reuse_address(true)?;
        let local = match address {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
        };
        socket.bind(&local.into())?;
    }
    if how.fast_open {
        sys::set_fast_open_connect(&socket)?;
    }
    socket.set_nonblocking(how.nonblocking)?;
    match socket.connect(&address.into()) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INPROGRESS) => {
            poll(&mut [PollFd::new(&socket, PollFlags::OUT)], None)?;
            socket.take_error()?.map_or(Ok(()), Err)?;
        }
        result => result?,
    }
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

/// Whether the other end reset the connection: that can be told by `connect` itself, by the first write, or by a read.
/// `ECONNABORTED` is what `connect` says where it finds the socket closed and the reset already told.
pub fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted
    )
}

/// Makes the next close a reset.
pub fn reset_on_close(stream: &TcpStream) -> io::Result<()> {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

/// Reads to the end, within the socket's time-out. A blocking receive on a socket of a sockmap says EAGAIN once when it is
/// woken by a reset, and the reset only when it is asked again.
pub fn read_to_end(stream: &mut TcpStream, received: &mut Vec<u8>) -> io::Result<()> {
    let (started, limit) = (
        Instant::now(),
        stream.read_timeout()?.unwrap_or(Duration::MAX),
    );
    match stream.read_to_end(received) {
        Err(error)
            if error.kind() == io::ErrorKind::WouldBlock && started.elapsed() < limit / 2 =>
        {
            stream.read_to_end(received).map(drop)
        }
        result => result.map(drop),
    }
}
