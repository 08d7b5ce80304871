//! One connection's bytes on a tunnel.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture, server::SendResponse};
use http::{Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::pool::Place;

/// What was read counts as such, so that the other side may send more, in steps of this.
const RELEASE_BYTES: usize = 32 * 1024;

/// Reads and writes as a socket does: the end of what is read is the other side's END_STREAM, and whatever else ends it is
/// an error. Dropped before both directions have ended it resets the stream.
#[derive(Debug)]
pub struct TunnelStream {
    sending: Sending,
    receiving: Receiving,
    /// Read before, by detection, and to be read again.
    prefix: Bytes,
    /// Received next.
    chunk: Bytes,
    /// Behind `chunk`: what came while nobody read, in one piece, as frames of few bytes take much memory.
    gathered: BytesMut,
    /// Read, and not yet told the other side.
    unreleased_bytes: usize,
    /// Why it broke, where that was found out while nobody read.
    broken: Option<io::Error>,
    /// On the tunnel, for the side that opened it.
    _place: Option<Place>,
}

enum Sending {
    /// The other side waits for an answer, which goes with the first bytes.
    Unanswered(SendResponse<Bytes>),
    Open(SendStream<Bytes>),
    Ended,
}

enum Receiving {
    Unanswered(ResponseFuture),
    Open(RecvStream),
    Ended,
}

impl TunnelStream {
    /// Of a stream that was opened from here.
    pub(super) fn opened(response: ResponseFuture, send: SendStream<Bytes>, place: Place) -> Self {
        Self::new(
            Sending::Open(send),
            Receiving::Unanswered(response),
            Some(place),
        )
    }

    /// Of a stream that the other side has opened.
    pub(super) fn accepted(body: RecvStream, respond: SendResponse<Bytes>) -> Self {
        Self::new(Sending::Unanswered(respond), Receiving::Open(body), None)
    }

    fn new(sending: Sending, receiving: Receiving, place: Option<Place>) -> Self {
        Self {
            sending,
            receiving,
            prefix: Bytes::new(),
            chunk: Bytes::new(),
            gathered: BytesMut::new(),
            unreleased_bytes: 0,
            broken: None,
            _place: place,
        }
    }

    /// Puts `bytes` in front of what is still to be read.
    pub fn prepend(&mut self, bytes: Bytes) {
        self.prefix = match (bytes.is_empty(), self.prefix.is_empty()) {
            (true, _) => return,
            (_, true) => bytes,
            _ => [bytes, std::mem::take(&mut self.prefix)].concat().into(),
        };
    }

    /// Makes the other side see a reset.
    pub fn reset(mut self) {
        match &mut self.sending {
            // Nothing was reached.
            Sending::Unanswered(respond) => respond.send_reset(Reason::CONNECT_ERROR),
            Sending::Open(send) => send.send_reset(Reason::CANCEL),
            // Dropping what is received resets it.
            Sending::Ended => {}
        }
    }

    /// What comes next, to be taken by [`Self::consume`]; empty: the end.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        if !self.prefix.is_empty() {
            return Poll::Ready(Ok(&self.prefix));
        }
        while self.chunk.is_empty() {
            if !self.gathered.is_empty() {
                self.chunk = self.gathered.split().freeze();
                break;
            }
            if let Some(error) = self.broken.take() {
                return Poll::Ready(Err(error));
            }
            match ready!(self.poll_received(cx))? {
                Some(chunk) => self.chunk = chunk,
                None => return Poll::Ready(Ok(&[])),
            }
        }
        Poll::Ready(Ok(&self.chunk))
    }

    /// `count` of what [`Self::poll_chunk`] gave was passed on.
    pub fn consume(&mut self, count: usize) {
        if !self.prefix.is_empty() {
            self.prefix.advance(count.min(self.prefix.len()));
            return;
        }
        let count = count.min(self.chunk.len());
        self.chunk.advance(count);
        self.unreleased_bytes += count;
        if self.unreleased_bytes >= RELEASE_BYTES
            || self.chunk.is_empty() && self.gathered.is_empty()
        {
            let released = std::mem::take(&mut self.unreleased_bytes);
            if let Receiving::Open(body) = &mut self.receiving {
                // Fails where no more can come.
                let _ = body.flow_control().release_capacity(released);
            }
        }
    }

    /// Takes in what has come while it cannot be passed on. The other side's window bounds it.
    pub fn gather(&mut self, cx: &mut Context<'_>) {
        while let (Receiving::Open(_), None) = (&self.receiving, &self.broken) {
            match self.poll_received(cx) {
                Poll::Ready(Ok(Some(bytes))) => self.gathered.extend_from_slice(&bytes),
                Poll::Ready(Err(error)) => self.broken = Some(error),
                Poll::Ready(Ok(None)) | Poll::Pending => return,
            }
        }
    }

    /// What has come and is not passed on yet.
    pub fn held_bytes(&self) -> usize {
        self.prefix.len() + self.chunk.len() + self.gathered.len()
    }

    /// A reset that neither reading nor writing finds: nobody reads, or the other side has said its end before.
    pub fn poll_broken(&mut self, cx: &mut Context<'_>) -> Option<io::Error> {
        if self.broken.is_some() {
            return self.broken.take();
        }
        if let (Receiving::Ended, Sending::Open(send)) = (&self.receiving, &mut self.sending)
            && let Poll::Ready(reason) = send.poll_reset(cx)
        {
            return Some(match reason {
                Ok(reason) => reset_with(reason),
                Err(error) => in_words(error),
            });
        }
        None
    }

    /// `None`: the end.
    fn poll_received(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            match &mut self.receiving {
                Receiving::Unanswered(response) => {
                    let response = ready!(Pin::new(response).poll(cx)).map_err(in_words)?;
                    let (head, body) = response.into_parts();
                    if head.status != StatusCode::OK {
                        let words = format!("the other sidecar answered {}", head.status);
                        return Poll::Ready(Err(reset(words)));
                    }
                    self.receiving = Receiving::Open(body);
                }
                Receiving::Open(body) => match ready!(body.poll_data(cx)) {
                    Some(Ok(bytes)) if bytes.is_empty() => {}
                    Some(Ok(bytes)) => return Poll::Ready(Ok(Some(bytes))),
                    Some(Err(error)) => return Poll::Ready(Err(in_words(error))),
                    None => self.receiving = Receiving::Ended,
                },
                Receiving::Ended => return Poll::Ready(Ok(None)),
            }
        }
    }

    /// The stream to write to, after the answer if that is due.
    fn sender(&mut self) -> io::Result<&mut SendStream<Bytes>> {
        if let Sending::Unanswered(respond) = &mut self.sending {
            let send = respond
                .send_response(Response::new(()), false)
                .map_err(in_words)?;
            self.sending = Sending::Open(send);
        }
        match &mut self.sending {
            Sending::Open(send) => Ok(send),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let chunk = ready!(this.poll_chunk(cx))?;
        let taken = chunk.len().min(buf.remaining());
        buf.put_slice(chunk.get(..taken).unwrap_or_default());
        this.consume(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let send = self.get_mut().sender()?;
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        send.reserve_capacity(buf.len());
        let mut room = send.capacity();
        while room == 0 {
            room = match ready!(send.poll_capacity(cx)) {
                Some(capacity) => capacity.map_err(in_words)?,
                // No more can be sent: it was reset.
                None => match send.poll_reset(cx) {
                    Poll::Ready(Ok(reason)) => return Poll::Ready(Err(reset_with(reason))),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(in_words(error))),
                    Poll::Pending => {
                        return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                    }
                },
            };
        }
        let written = buf.get(..room).unwrap_or(buf);
        send.send_data(Bytes::copy_from_slice(written), false)
            .map_err(in_words)?;
        Poll::Ready(Ok(written.len()))
    }

    /// The tunnel writes by itself.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Says the end of this direction.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let said = match &mut this.sending {
            Sending::Unanswered(respond) => {
                respond.send_response(Response::new(()), true).map(|_| ())
            }
            Sending::Open(send) => send.send_data(Bytes::new(), true),
            Sending::Ended => return Poll::Ready(Ok(())),
        };
        said.map_err(in_words)?;
        this.sending = Sending::Ended;
        Poll::Ready(Ok(()))
    }
}

/// A stream of a tunnel that broke was broken, too.
fn in_words(error: h2::Error) -> io::Error {
    match (error.reason(), error.get_io()) {
        (Some(reason), _) if error.is_reset() => reset_with(reason),
        (_, Some(io)) if io.kind() == io::ErrorKind::TimedOut => {
            io::Error::new(io::ErrorKind::TimedOut, "the tunnel's other side is lost")
        }
        _ => reset(format!("the tunnel broke: {error}")),
    }
}

fn reset_with(reason: Reason) -> io::Error {
    let words = match reason {
        Reason::CANCEL => "the other sidecar reset the connection".to_owned(),
        Reason::CONNECT_ERROR => "the other sidecar did not connect it".to_owned(),
        reason => format!("the other sidecar reset the connection: {reason}"),
    };
    reset(words)
}

fn reset(words: String) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, words)
}

impl std::fmt::Debug for Sending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unanswered(_) => "Unanswered",
            Self::Open(_) => "Open",
            Self::Ended => "Ended",
        })
    }
}

impl std::fmt::Debug for Receiving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unanswered(_) => "Unanswered",
            Self::Open(_) => "Open",
            Self::Ended => "Ended",
        })
    }
}
