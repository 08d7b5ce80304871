//! Bodies on their way through: not copied, not boxed, counted.

use std::{
    error::Error as StdError,
    fmt,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::{
    client::Lease,
    exchange::{self, Exchange},
    expect::Gate,
};
use crate::connection::{Outcome, Reason};

/// The client's body, read by the connection to upstream.
pub(super) struct RequestBody {
    /// `None`: there is none.
    incoming: Option<Incoming>,
    exchange: Option<Rc<Exchange>>,
    gate: Option<Gate>,
}

impl RequestBody {
    pub fn empty() -> Self {
        Self {
            incoming: None,
            exchange: None,
            gate: None,
        }
    }

    pub fn new(incoming: Incoming, exchange: &Rc<Exchange>) -> Self {
        if incoming.is_end_stream() {
            return Self::empty();
        }
        Self {
            incoming: Some(incoming),
            exchange: Some(exchange.clone()),
            gate: None,
        }
    }

    /// The body waits for `100 Continue` from upstream.
    pub fn wait_for(&mut self, gate: Gate) {
        self.gate = Some(gate);
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        if let Some(gate) = &mut this.gate {
            ready!(gate.poll(cx));
            this.gate = None;
        }
        let (Some(incoming), Some(exchange)) = (&mut this.incoming, &this.exchange) else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(incoming).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    exchange.count_request(data.len());
                }
            }
            Some(Err(_)) => exchange.client_failed(),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.incoming {
            Some(incoming) => incoming.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

/// The response's body: upstream's, or the proxy's own.
pub(super) struct ResponseBody(Kind);

enum Kind {
    Own(Option<Bytes>),
    Relayed(Relayed),
}

struct Relayed {
    incoming: Incoming,
    exchange: Rc<Exchange>,
    /// The connection to upstream, given back when the body has ended.
    lease: Option<Lease>,
    /// The route's time for the whole request.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Whatever the end was, it is recorded.
    ended: bool,
}

/// Why a response broke off.
#[derive(Debug)]
pub(super) enum BodyError {
    Upstream(hyper::Error),
    Timeout,
}

impl ResponseBody {
    pub fn empty() -> Self {
        Self(Kind::Own(None))
    }

    pub fn full(bytes: Bytes) -> Self {
        Self(Kind::Own((!bytes.is_empty()).then_some(bytes)))
    }

    pub fn relayed(
        incoming: Incoming,
        exchange: Rc<Exchange>,
        lease: Lease,
        deadline: Option<Pin<Box<Sleep>>>,
    ) -> Self {
        Self(Kind::Relayed(Relayed {
            incoming,
            exchange,
            lease: Some(lease),
            deadline,
            ended: false,
        }))
    }

    pub fn own_bytes(&self) -> usize {
        match &self.0 {
            Kind::Own(Some(bytes)) => bytes.len(),
            _ => 0,
        }
    }
}

impl Relayed {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            self.fail(Reason::RequestTimeout, None);
            return Poll::Ready(Some(Err(BodyError::Timeout)));
        }
        ready!(self.exchange.poll_backlog(cx));
        match ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.exchange.count_response(data.len());
                    self.exchange.owes(data.len());
                }
                if frame.is_trailers() || self.incoming.is_end_stream() {
                    self.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                let reason = exchange::upstream_reason(&error);
                self.fail(reason, Some(exchange::words(&error)));
                Poll::Ready(Some(Err(BodyError::Upstream(error))))
            }
            None => {
                self.complete();
                Poll::Ready(None)
            }
        }
    }

    fn complete(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            if let Some(lease) = self.lease.take() {
                lease.give_back();
            }
            self.exchange.end(Outcome::Success, None);
        }
    }

    fn fail(&mut self, reason: Reason, detail: Option<String>) {
        if !std::mem::replace(&mut self.ended, true) {
            self.lease = None;
            self.exchange.broken(reason, detail);
        }
    }
}

impl Drop for Relayed {
    /// hyper drops a body that says it is at its end without asking for more.
    fn drop(&mut self) {
        if self.incoming.is_end_stream() {
            self.complete();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.get_mut().0 {
            Kind::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Relayed(relayed) => relayed.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Own(bytes) => bytes.is_none(),
            Kind::Relayed(relayed) => relayed.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Own(bytes) => {
                let length = bytes.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(u64::try_from(length).unwrap_or(0))
            }
            Kind::Relayed(relayed) => relayed.incoming.size_hint(),
        }
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Upstream(_) => "the response broke off",
            Self::Timeout => Reason::RequestTimeout.words(),
        })
    }
}

impl StdError for BodyError {
    /// HTTP/2 clients are told the code of upstream's reset, which hyper looks for here.
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Upstream(error) => Some(error),
            Self::Timeout => None,
        }
    }
}
