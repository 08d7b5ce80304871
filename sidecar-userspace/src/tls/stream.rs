//! The encrypted stream, with bytes in front that were decrypted already.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::connection::Stream;

/// Plaintext that is read ahead to look at it.
const PEEK_BYTES: usize = 4096;

/// A TLS stream over a socket. Its end of stream is the peer's close_notify; a socket that ends without one is an
/// error ([`io::ErrorKind::UnexpectedEof`]). Dropping it says no close_notify.
#[derive(Debug)]
pub struct TlsStream {
    inner: tokio_rustls::TlsStream<Stream>,
    /// Decrypted and not yet given out.
    ahead: Bytes,
}

impl TlsStream {
    pub fn new(inner: tokio_rustls::TlsStream<Stream>) -> Self {
        Self {
            inner,
            ahead: Bytes::new(),
        }
    }

    pub fn tcp(&self) -> &TcpStream {
        self.inner.get_ref().0.tcp()
    }

    pub fn into_tcp(self) -> TcpStream {
        let stream = match self.inner {
            tokio_rustls::TlsStream::Client(client) => client.into_inner().0,
            tokio_rustls::TlsStream::Server(server) => server.into_inner().0,
        };
        stream.into_tcp()
    }

    /// What carries the encrypted bytes.
    pub fn stream(&mut self) -> &mut Stream {
        self.inner.get_mut().0
    }

    /// Puts `bytes` in front of what is still to be read.
    pub fn prepend(&mut self, bytes: Bytes) {
        self.ahead = match (bytes.is_empty(), self.ahead.is_empty()) {
            (true, _) => return,
            (_, true) => bytes,
            _ => [bytes, std::mem::take(&mut self.ahead)].concat().into(),
        };
    }

    /// What the peer says next, left to be read; empty at the end of the stream.
    pub fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        if self.ahead.is_empty() {
            let mut bytes = BytesMut::zeroed(PEEK_BYTES);
            let mut buf = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf)).map_err(in_words)?;
            let read = buf.filled().len();
            bytes.truncate(read);
            self.ahead = bytes.freeze();
        }
        Poll::Ready(Ok(&self.ahead))
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.has_remaining() {
            let take = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead.split_to(take));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.inner)
            .poll_read(cx, buf)
            .map_err(in_words)
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    /// Says close_notify, then ends the sending direction of the socket.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

fn in_words(error: io::Error) -> io::Error {
    match error.kind() {
        // The library's own words are for programmers.
        io::ErrorKind::UnexpectedEof => io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the TLS stream ended without close_notify",
        ),
        _ => error,
    }
}
