//! Connections of the self-test, every byte of which is known by its position.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::ioctl_fionread,
};

/// No read or write waits longer.
const PATIENCE: Duration = Duration::from_secs(2);
/// What is redirected is there when the sender returns, and what takes TCP over loopback soon: waiting longer would only make
/// each start slower where it is not counted.
const COUNTED_WITHIN: Duration = Duration::from_millis(50);
pub const BLOCK_BYTES: usize = 64 << 10;

/// What went wrong.
pub type Check = Result<(), String>;

/// A connection between two sockets that block.
pub fn pair() -> Result<(TcpStream, TcpStream), String> {
    let listener = listen()?;
    let address = listener.local_addr().map_err(|e| e.to_string())?;
    let client = TcpStream::connect(address).map_err(cannot_connect)?;
    let (server, _) = listener.accept().map_err(cannot_connect)?;
    prepare(&client)?;
    prepare(&server)?;
    Ok((client, server))
}

pub fn listen() -> Result<TcpListener, String> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(cannot_connect)
}

/// No read or write of it waits for good.
pub fn prepare(socket: &TcpStream) -> Check {
    let prepared = || -> io::Result<()> {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.set_nodelay(true)
    };
    prepared().map_err(cannot_connect)
}

pub fn cannot_connect(error: io::Error) -> String {
    format!("cannot make a connection: {error}")
}

/// The byte at `position` of every test stream.
fn byte(position: usize) -> u8 {
    (position.wrapping_mul(0x9e37_79b1) >> 13) as u8
}

pub fn block(position: usize, length: usize) -> Vec<u8> {
    (position..position + length).map(byte).collect()
}

pub fn send(socket: &mut TcpStream, position: &mut usize, length: usize) -> Check {
    socket
        .write_all(&block(*position, length))
        .map_err(|e| format!("write: {e}"))?;
    *position += length;
    Ok(())
}

/// Reads up to `end` and compares every byte.
pub fn expect(socket: &mut TcpStream, position: &mut usize, end: usize) -> Check {
    let mut buffer = vec![0; BLOCK_BYTES];
    while *position < end {
        let wanted = buffer.len().min(end - *position);
        let read = match read(socket, &mut buffer[..wanted]) {
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

/// The other end has said that nothing more comes.
pub fn expect_end(socket: &mut TcpStream) -> Check {
    match read(socket, &mut [0]) {
        Ok(0) => Ok(()),
        other => Err(format!("no end of stream: {other:?}")),
    }
}

/// A read that waits, also where the socket does not block.
fn read(socket: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    match socket.read(buffer) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => {}
        done => return done,
    }
    let patience = Timespec::try_from(PATIENCE).ok();
    let mut waiting = [PollFd::new(&*socket, PollFlags::IN)];
    poll(&mut waiting, patience.as_ref())?;
    socket.read(buffer)
}

/// `FIONREAD` comes to say that `bytes` wait.
pub fn readable(socket: &TcpStream, bytes: u64) -> Check {
    let deadline = Instant::now() + COUNTED_WITHIN;
    loop {
        match ioctl_fionread(socket) {
            Ok(counted) if counted == bytes => return Ok(()),
            Ok(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            other => return Err(format!("{bytes} bytes wait, FIONREAD says {other:?}")),
        }
    }
}
