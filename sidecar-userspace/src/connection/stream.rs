//! A TCP stream with bytes in front that were read already, safe to use on sockets that the kernel half redirects.
//!
//! tokio's own `poll_read` takes a read shorter than its buffer for an empty socket and waits for the next edge
//! of epoll. A socket in the kernel's SOCKHASH has two queues (redirected messages, and TCP's); a read returns
//! from one of them, so that a short read says nothing about the other and the edge may have passed. Here a
//! socket counts as empty only when the kernel said `EAGAIN`.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::room::Room;

/// The client's or the destination's stream.
#[derive(Debug)]
pub struct Stream {
    tcp: TcpStream,
    /// Read from the socket before (by detection) and not yet by the owner.
    prefix: Bytes,
    /// For what is written.
    room: Room,
}

impl Stream {
    pub fn new(tcp: TcpStream) -> Self {
        Self::with_prefix(tcp, Bytes::new())
    }

    /// `prefix`: what was read already; it comes first.
    pub fn with_prefix(tcp: TcpStream, prefix: Bytes) -> Self {
        Self {
            tcp,
            prefix,
            room: Room::default(),
        }
    }

    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// The socket, and the bytes that were read from it and not yet given out.
    pub fn into_parts(self) -> (TcpStream, Bytes) {
        (self.tcp, self.prefix)
    }

    /// Makes the peer see a reset, not an end of stream.
    pub fn reset(self) {
        reset(self.tcp);
    }
}

/// Closes the socket with RST. Data that was not yet sent is lost, which is the point: a truncated stream must
/// not look like a complete one.
pub fn reset(tcp: TcpStream) {
    // Fails only on a socket that is gone already.
    let _ = tcp.set_zero_linger();
    drop(tcp);
}

/// Writes what there is room for, without tokio's own `poll_write`, which takes a short write for a full socket: on a
/// socket in the SOCKHASH that says nothing, as with reading.
pub fn poll_write(
    cx: &mut Context<'_>,
    tcp: &TcpStream,
    room: &mut Room,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    let granted = ready!(room.poll(cx, tcp, bytes.len()));
    let bytes = bytes.get(..granted).unwrap_or(bytes);
    poll_writing(cx, tcp, room, |tcp| tcp.try_write(bytes))
}

fn poll_writing(
    cx: &mut Context<'_>,
    tcp: &TcpStream,
    room: &mut Room,
    write: impl Fn(&TcpStream) -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        match write(tcp) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(written) => {
                room.spend(written);
                return Poll::Ready(Ok(written));
            }
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Self {
        Self::new(tcp)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.has_remaining() {
            let take = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix.split_to(take));
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.tcp.poll_read_ready(cx))?;
            match self.tcp.try_read_buf(buf) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        poll_write(cx, &this.tcp, &mut this.room, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        let granted = ready!(this.room.poll(cx, &this.tcp, wanted));
        if granted >= wanted {
            return poll_writing(cx, &this.tcp, &mut this.room, |tcp| {
                tcp.try_write_vectored(bufs)
            });
        }
        let first = bufs.iter().find(|buf| !buf.is_empty());
        let first = first.map_or(&[][..], |buf| buf);
        let some = first.get(..granted).unwrap_or(first);
        poll_writing(cx, &this.tcp, &mut this.room, |tcp| tcp.try_write(some))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}
