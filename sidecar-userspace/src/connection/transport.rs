//! What carries a connection's bytes: a socket, or TLS over one.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{Stream, stream};
use crate::tls::stream::TlsStream;

/// The client's or the destination's stream. The end of what is read is the peer's word; a connection that broke off
/// is an error, under TLS as well.
#[derive(Debug)]
pub enum Transport {
    Tcp(Stream),
    Tls(Box<TlsStream>),
}

impl Transport {
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(stream) => stream.tcp(),
            Self::Tls(stream) => stream.tcp(),
        }
    }

    /// Puts `bytes` in front of what is still to be read.
    pub fn prepend(self, bytes: Bytes) -> Self {
        match self {
            _ if bytes.is_empty() => self,
            Self::Tcp(stream) => {
                let (tcp, unread) = stream.into_parts();
                let bytes = match unread.is_empty() {
                    true => bytes,
                    false => [bytes, unread].concat().into(),
                };
                Self::Tcp(Stream::with_prefix(tcp, bytes))
            }
            Self::Tls(mut stream) => {
                stream.prepend(bytes);
                Self::Tls(stream)
            }
        }
    }

    /// Makes the peer see a reset, not an end of stream.
    pub fn reset(self) {
        match self {
            Self::Tcp(stream) => stream.reset(),
            Self::Tls(stream) => stream::reset(stream.into_tcp()),
        }
    }

    /// The beginning of what the peer says next, left to be read; 0: the end of the stream.
    pub async fn peek(&mut self, start: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.tcp().peek(start).await,
            Self::Tls(stream) => {
                std::future::poll_fn(|cx| {
                    let ahead = ready!(stream.poll_peek(cx))?;
                    let seen = ahead.len().min(start.len());
                    let to = start.get_mut(..seen).unwrap_or_default();
                    to.copy_from_slice(ahead.get(..seen).unwrap_or_default());
                    Poll::Ready(Ok(seen))
                })
                .await
            }
        }
    }
}

/// A client that nobody serves yet: dropping it, by a refusal or because its task was dropped, resets it.
#[derive(Debug)]
pub struct Unserved(Option<Transport>);

impl Unserved {
    pub fn new(tcp: TcpStream) -> Self {
        Self(Some(Transport::Tcp(Stream::new(tcp))))
    }

    pub fn tcp(&self) -> io::Result<&TcpStream> {
        let transport = self.0.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        Ok(transport.tcp())
    }

    pub fn transport(&mut self) -> io::Result<&mut Transport> {
        self.0
            .as_mut()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Hands the client to whoever serves it and cares for its end, with what was read from it already.
    pub fn serve(mut self, prefix: Bytes) -> io::Result<Transport> {
        let transport = self.0.take().ok_or(io::ErrorKind::NotConnected)?;
        Ok(transport.prepend(prefix))
    }
}

impl Drop for Unserved {
    fn drop(&mut self) {
        if let Some(transport) = self.0.take() {
            transport.reset();
        }
    }
}

impl From<Transport> for Unserved {
    fn from(transport: Transport) -> Self {
        Self(Some(transport))
    }
}

impl From<TcpStream> for Transport {
    fn from(tcp: TcpStream) -> Self {
        Self::Tcp(Stream::new(tcp))
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
