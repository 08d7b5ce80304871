//! The client's side of an HTTP connection: what hyper reads has passed the audit.
//!
//! A head is given to hyper whole or not at all. Where the audit refuses one, hyper gets a request that stands
//! for the refusal instead, so that the answer takes its turn behind those of earlier requests and is made and
//! recorded like any other.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    framing::{self, Auditor, Violation},
    wire::Wire,
};
use crate::{
    connection::{Doubt, Doubts, Transport},
    lifecycle::drain::{self, DrainSignal},
};

/// Stands for a refused request; its method is [`super::wire::STAND_IN_METHOD`].
const STAND_IN: &[u8] = b"SIDECAR-REFUSED / HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n";

/// What a client may send ahead of the answer to CONNECT or to a request to upgrade.
const MAX_AHEAD_BYTES: usize = 64 * 1024;

/// Opens an HTTP/2 connection (RFC 9113, 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The client's stream, audited.
#[derive(Debug)]
pub(super) struct Audited {
    /// `None` once it was handed on.
    stream: Option<Transport>,
    drain: DrainSignal,
    auditor: Auditor,
    wire: Rc<Wire>,
    /// Read from the stream and not yet given out; its first `ready` bytes may be.
    held: BytesMut,
    ready: usize,
    end: Option<End>,
    /// Told where requests end.
    doubt: Option<Arc<Doubt>>,
}

/// What follows the bytes that are ready.
#[derive(Debug, Clone, Copy)]
enum End {
    /// The client's end of stream.
    Eof,
    /// A head was refused.
    Refused(Violation),
    /// A body was: the request it belongs to has been given out.
    BrokenBody(Violation),
    /// The refusal was given out. What the client still sends is nobody's business.
    Silence,
}

/// What a connection's first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

impl Audited {
    pub fn new(
        stream: Transport,
        limits: framing::Limits,
        wire: Rc<Wire>,
        drain: DrainSignal,
    ) -> Self {
        Self {
            stream: Some(stream),
            drain,
            auditor: Auditor::new(limits),
            wire,
            held: BytesMut::new(),
            ready: 0,
            end: None,
            doubt: None,
        }
    }

    /// Reads until the version is known; `None` if the client ended the stream before sending anything.
    pub async fn version(&mut self) -> io::Result<Option<Version>> {
        loop {
            let same = self.held.iter().zip(HTTP2_PREFACE).all(|(a, b)| a == b);
            if same && self.held.len() >= HTTP2_PREFACE.len() {
                self.auditor.set_opaque();
                self.ready = self.held.len();
                return Ok(Some(Version::Http2));
            }
            if !same || self.end.is_some() {
                self.audit_held();
                return Ok(Some(Version::Http1));
            }
            let read = std::future::poll_fn(|cx| self.poll_hold(cx)).await?;
            if read == 0 {
                if self.held.is_empty() {
                    return Ok(None);
                }
                self.end = Some(self.eof());
            }
        }
    }

    /// See [`Transport::put_off`]; for HTTP/1, whose ends the audit knows.
    pub fn put_off(&mut self, doubts: &Doubts) {
        self.doubt = self
            .stream
            .as_mut()
            .and_then(|stream| stream.put_off(doubts));
    }

    /// The stream and the bytes that were read from it and not given out.
    pub fn into_parts(mut self) -> Option<(Transport, Bytes)> {
        let mut stream = self.stream.take()?;
        stream.hasten();
        Some((stream, std::mem::take(&mut self.held).freeze()))
    }

    /// Whether closing now would cut off what the client is still sending.
    pub fn is_mid_message(&self) -> bool {
        match self.end {
            Some(End::Eof) => false,
            Some(_) => true,
            None => !self.auditor.at_message_start() || !self.held.is_empty(),
        }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut Transport>> {
        let stream = self.stream.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        Ok(Pin::new(stream))
    }

    fn poll_direct(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(self.stream()?.poll_read(cx, buf))?;
        let fresh = buf.filled().get(before..).unwrap_or_default();
        if fresh.is_empty() {
            self.end = Some(self.eof());
            return Poll::Ready(Ok(()));
        }
        self.wire.read(fresh.len());
        let good = match self.auditor.audit(fresh) {
            Ok(good) => good,
            Err(refused) => {
                self.refuse(refused);
                refused.good
            }
        };
        let rest = fresh.get(good..).unwrap_or_default();
        if !rest.is_empty() && self.end.is_none() {
            self.held.extend_from_slice(rest);
            self.note_head();
        }
        buf.set_filled(before + good);
        self.note_end();
        Poll::Ready(Ok(()))
    }

    /// Reads more behind what is held; gives the number of bytes.
    fn poll_hold(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [0; 4096];
        let mut buf = ReadBuf::new(&mut space);
        ready!(self.stream()?.poll_read(cx, &mut buf))?;
        let read = buf.filled().len();
        self.held.extend_from_slice(buf.filled());
        self.wire.read(read);
        self.note_head();
        Poll::Ready(Ok(read))
    }

    /// Audits what is held and not ready.
    fn audit_held(&mut self) {
        match self
            .auditor
            .audit(self.held.get(self.ready..).unwrap_or_default())
        {
            Ok(good) => self.ready += good,
            Err(refused) => {
                self.refuse(refused);
                self.ready += refused.good;
                self.held.truncate(self.ready);
            }
        }
        self.note_head();
        self.note_end();
    }

    /// Between requests no more bytes are owed.
    fn note_end(&self) {
        if let Some(doubt) = &self.doubt
            && self.auditor.at_message_start()
            && self.held.len() == self.ready
        {
            doubt.message_done();
        }
    }

    fn refuse(&mut self, refused: framing::Refused) {
        self.end = Some(if refused.in_head {
            End::Refused(refused.violation)
        } else {
            End::BrokenBody(refused.violation)
        });
    }

    /// The clock for a head starts with its first byte.
    fn note_head(&self) {
        if self.ready == 0 && !self.held.is_empty() && self.auditor.at_message_start() {
            self.wire.head_begins();
        }
    }

    fn eof(&self) -> End {
        if self.auditor.at_message_start() && !self.held.is_empty() {
            End::Refused(Violation::Truncated)
        } else {
            End::Eof
        }
    }

    /// Gives out what is ready.
    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let now = self.ready.min(buf.remaining()).min(self.held.len());
        buf.put_slice(self.held.get(..now).unwrap_or_default());
        self.held.advance(now);
        self.ready -= now;
        if self.held.is_empty() {
            // An idle connection holds no memory here.
            self.held = BytesMut::new();
        }
    }

    /// What comes after the last byte; `None`: nothing ever.
    fn finish(&mut self, end: End, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match end {
            End::Eof => Poll::Ready(Ok(())),
            End::Silence => Poll::Pending,
            End::Refused(violation) => {
                self.wire.refuse(violation);
                self.held = BytesMut::from(STAND_IN);
                self.ready = STAND_IN.len();
                self.end = Some(End::Silence);
                self.give(buf);
                Poll::Ready(Ok(()))
            }
            End::BrokenBody(violation) => {
                self.wire.refuse(violation);
                self.end = Some(End::Silence);
                Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, violation)))
            }
        }
    }
}

impl Drop for Audited {
    /// Dropped with a response under way, or at the end of the drain: that must not look like an orderly end.
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take()
            && (self.wire.has_open_requests() || self.drain.phase() == drain::Phase::Ended)
        {
            stream.reset();
        }
    }
}

impl AsyncRead for Audited {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            if this.ready > 0 {
                this.give(buf);
                return Poll::Ready(Ok(()));
            }
            if let Some(end) = this.end {
                return this.finish(end, buf);
            }
            if this.wire.take_slow() && this.auditor.at_message_start() {
                this.held.clear();
                this.end = Some(End::Refused(Violation::Slow));
            } else if this.auditor.is_undecided()
                && let Some(opaque) = this.wire.take_decision()
            {
                this.auditor.decide(opaque);
                this.audit_held();
            } else if this.held.is_empty() {
                ready!(this.poll_direct(cx, buf))?;
                if buf.filled().len() > before {
                    return Poll::Ready(Ok(()));
                }
            } else if this.auditor.is_undecided() && this.held.len() >= MAX_AHEAD_BYTES {
                return Poll::Pending;
            } else {
                match ready!(this.poll_hold(cx))? {
                    0 => this.end = Some(this.eof()),
                    _ => this.audit_held(),
                }
            }
        }
    }
}

impl AsyncWrite for Audited {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(this.stream()?.poll_write(cx, buf))?;
        this.wire.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(this.stream()?.poll_write_vectored(cx, bufs))?;
        this.wire.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream()?.poll_shutdown(cx)
    }
}
