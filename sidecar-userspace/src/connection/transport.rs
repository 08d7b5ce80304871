//! What carries a connection's bytes: a socket, TLS over one, or a stream of a tunnel.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    Stream,
    doubt::{Doubt, Doubts},
    stream,
    tunnel::TunnelStream,
};
use crate::tls::stream::TlsStream;

/// The client's or the destination's stream. The end of what is read is the peer's word; a connection that broke off
/// is an error, under TLS as well.
#[derive(Debug)]
pub enum Transport {
    Tcp(Stream),
    Tls(Box<TlsStream>),
    Tunnel(Box<TunnelStream>),
}

impl Transport {
    /// The socket, where the connection has one of its own.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(stream) => Some(stream.tcp()),
            Self::Tls(stream) => Some(stream.tcp()),
            Self::Tunnel(_) => None,
        }
    }

    /// A failure that reading and writing have not met, as there is nothing to read or write.
    pub fn take_error(&self) -> Option<io::Error> {
        self.tcp()?.take_error().ok().flatten()
    }

    /// As [`Self::take_error`], where being woken by it costs nothing.
    pub fn poll_broken(&mut self, cx: &mut Context<'_>) -> Option<io::Error> {
        match self {
            Self::Tcp(_) | Self::Tls(_) => None,
            Self::Tunnel(stream) => stream.poll_broken(cx),
        }
    }

    /// Puts `bytes` in front of what is still to be read.
    pub fn prepend(self, bytes: Bytes) -> Self {
        match self {
            _ if bytes.is_empty() => self,
            Self::Tcp(mut stream) => {
                stream.prepend(bytes);
                Self::Tcp(stream)
            }
            Self::Tls(mut stream) => {
                stream.prepend(bytes);
                Self::Tls(stream)
            }
            Self::Tunnel(mut stream) => {
                stream.prepend(bytes);
                Self::Tunnel(stream)
            }
        }
    }

    /// See [`Stream::put_off`]; `None`: there is no socket here to ask.
    pub fn put_off(&mut self, doubts: &Doubts) -> Option<Arc<Doubt>> {
        match self {
            Self::Tcp(stream) => Some(stream.put_off(doubts)),
            Self::Tls(stream) => Some(stream.stream().put_off(doubts)),
            Self::Tunnel(_) => None,
        }
    }

    /// Takes back [`Self::put_off`].
    pub fn hasten(&mut self) {
        match self {
            Self::Tcp(stream) => stream.hasten(),
            Self::Tls(stream) => stream.stream().hasten(),
            Self::Tunnel(_) => {}
        }
    }

    /// Makes the peer see a reset, not an end of stream.
    pub fn reset(self) {
        match self {
            Self::Tcp(stream) => stream.reset(),
            Self::Tls(stream) => stream::reset(stream.into_tcp()),
            Self::Tunnel(stream) => stream.reset(),
        }
    }

    /// The beginning of what the peer says next, left to be read; 0: the end of the stream.
    pub async fn peek(&mut self, start: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.tcp().peek(start).await,
            Self::Tls(stream) => {
                std::future::poll_fn(|cx| {
                    Poll::Ready(Ok(copy(ready!(stream.poll_peek(cx))?, start)))
                })
                .await
            }
            Self::Tunnel(stream) => {
                std::future::poll_fn(|cx| {
                    Poll::Ready(Ok(copy(ready!(stream.poll_chunk(cx))?, start)))
                })
                .await
            }
        }
    }
}

/// How many bytes of `from` fit into `to`, which has them then.
fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let count = from.len().min(to.len());
    let to = to.get_mut(..count).unwrap_or_default();
    to.copy_from_slice(from.get(..count).unwrap_or_default());
    count
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
        transport
            .tcp()
            .ok_or_else(|| io::ErrorKind::Unsupported.into())
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
            Self::Tunnel(stream) => Pin::new(stream).poll_read(cx, buf),
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
            Self::Tunnel(stream) => Pin::new(stream).poll_write(cx, buf),
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
            Self::Tunnel(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tunnel(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tunnel(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
