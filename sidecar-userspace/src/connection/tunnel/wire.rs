//! What is below a tunnel's HTTP/2: TLS, written to once for all frames of a turn.
//!
//! HTTP/2 flushes after each frame, which would make each a TLS record and a system call. Here a flush does nothing; the
//! task that drives the connection writes what has gathered when it has polled it.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{connection::stream, tls::stream::TlsStream};

/// Two TLS records.
const GATHER_BYTES: usize = 32 * 1024;
/// Frames from this size on are not copied.
const LARGE_BYTES: usize = 16 * 1024;

/// Clones share it: one is HTTP/2's, one is its driver's.
#[derive(Debug, Clone)]
pub(super) struct Wire(Rc<RefCell<Inner>>);

#[derive(Debug)]
struct Inner {
    /// Taken when it is dropped.
    tls: Option<TlsStream>,
    /// Frames that were not given to TLS yet, from `start`.
    gathered: Vec<u8>,
    start: usize,
    /// TLS may hold bytes that are not in its socket.
    unflushed: bool,
    received_bytes: u64,
    /// Ended in order; else dropping it resets it.
    ended: bool,
}

impl Wire {
    pub fn new(tls: TlsStream) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            tls: Some(tls),
            gathered: Vec::new(),
            start: 0,
            unflushed: false,
            received_bytes: 0,
            ended: false,
        })))
    }

    /// So far: differs between two times if the other side was heard.
    pub fn received_bytes(&self) -> u64 {
        self.0.borrow().received_bytes
    }

    /// Writes what has gathered.
    pub fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_drain(cx)
    }
}

impl Inner {
    fn tls(&mut self) -> io::Result<Pin<&mut TlsStream>> {
        let tls = self.tls.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        Ok(Pin::new(tls))
    }

    fn waiting(&self) -> usize {
        self.gathered.len() - self.start
    }

    /// Until TLS has everything.
    fn poll_write_gathered(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.start < self.gathered.len() {
            let rest = self.gathered.get(self.start..).unwrap_or_default();
            let tls = self.tls.as_mut().ok_or(io::ErrorKind::NotConnected)?;
            self.start += ready!(Pin::new(tls).poll_write(cx, rest))?;
            self.unflushed = true;
        }
        self.gathered.clear();
        self.start = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_gathered(cx))?;
        if self.unflushed {
            ready!(self.tls()?.poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        let large = wanted >= LARGE_BYTES;
        if large || self.waiting() + wanted > GATHER_BYTES {
            ready!(self.poll_write_gathered(cx))?;
        }
        if large {
            self.unflushed = true;
            return self.tls()?.poll_write_vectored(cx, bufs);
        }
        for buf in bufs {
            self.gathered.extend_from_slice(buf);
        }
        Poll::Ready(Ok(wanted))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(tls) = self.tls.take()
            && !self.ended
        {
            stream::reset(tls.into_tcp());
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        let before = buf.filled().len();
        ready!(inner.tls()?.poll_read(cx, buf))?;
        inner.received_bytes += (buf.filled().len() - before) as u64;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        ready!(inner.poll_drain(cx))?;
        ready!(inner.tls()?.poll_shutdown(cx))?;
        inner.ended = true;
        Poll::Ready(Ok(()))
    }
}
