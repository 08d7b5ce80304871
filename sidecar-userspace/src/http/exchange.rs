//! Record: one request and its response, from head to end, whatever end that is.

use std::{
    cell::{Cell, RefCell},
    error::Error as StdError,
    io,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use http::{HeaderMap, Request, StatusCode, header, uri::Authority};
use http_body::Body;

use super::{headers, refusal::Refusal, session::Session};
use crate::connection::{Outcome, Reason, RequestRecord};

/// Shared by the request's body on its way up, the response's on its way down, and who handles the request.
/// Recorded once: when the response is complete, when it fails, or when everybody has let go of it.
pub(super) struct Exchange {
    session: Rc<Session>,
    record: RefCell<Option<RequestRecord>>,
    request_bytes: Cell<u64>,
    response_bytes: Cell<u64>,
    /// The client broke off its own request.
    client_failed: Cell<bool>,
    pub grpc: bool,
}

impl Exchange {
    pub fn begin<B: Body>(session: &Rc<Session>, request: &Request<B>) -> Rc<Self> {
        session.wire.request_begins();
        let context = &session.context;
        let mut record = context.recorder.request(context.direction, context.peer);
        record.destination = context.original;
        record.client_tls = context.tls.clone();
        record.version = request.version();
        record.method = request.method().clone();
        record.authority = authority(request);
        record.path = request.uri().path_and_query().cloned();
        record.user_agent = request.headers().get(header::USER_AGENT).cloned();
        record.traceparent = request.headers().get("traceparent").cloned();
        Rc::new(Self {
            session: session.clone(),
            record: RefCell::new(Some(record)),
            request_bytes: Cell::new(0),
            response_bytes: Cell::new(0),
            client_failed: Cell::new(false),
            grpc: headers::is_grpc(request.headers()),
        })
    }

    /// Adds to the record, unless it was closed already.
    pub fn note(&self, add: impl FnOnce(&mut RequestRecord)) {
        if let Some(record) = self.record.borrow_mut().as_mut() {
            add(record);
        }
    }

    pub fn authority(&self) -> Option<Authority> {
        self.record.borrow().as_ref()?.authority.clone()
    }

    pub fn started(&self) -> Instant {
        self.record
            .borrow()
            .as_ref()
            .map_or_else(Instant::now, |record| record.started)
    }

    /// The response's head is there; later heads do not count.
    pub fn head(&self, status: StatusCode) {
        self.note(|record| {
            record.status = status.as_u16();
            record.first_byte.get_or_insert(record.started.elapsed());
        });
    }

    pub fn count_request(&self, bytes: usize) {
        add(&self.request_bytes, bytes);
    }

    pub fn count_response(&self, bytes: usize) {
        add(&self.response_bytes, bytes);
    }

    /// `bytes` of the response were taken from upstream for the client. Not of HTTP/2, where flow control bounds what waits, and
    /// what a stream was going to send is dropped when the client resets it.
    pub fn owes(&self, bytes: usize) {
        if !self.session.http2 {
            self.session.wire.owes(bytes);
        }
    }

    /// Ready when the client may have more of the response. Where the worker's memory is scarce, no more of it is taken from
    /// upstream than may wait for him.
    pub fn poll_backlog(&self, cx: &Context<'_>) -> Poll<()> {
        let context = &self.session.context;
        let wanted = context.snapshot.limits.buffer_bytes;
        match context.worker.buffers.bound(wanted) {
            Some(bound) => self.session.wire.poll_backlog(cx, bound),
            None => Poll::Ready(()),
        }
    }

    pub fn count_tunnel(&self, client_bytes: u64, upstream_bytes: u64) {
        self.request_bytes.set(client_bytes);
        self.response_bytes.set(upstream_bytes);
    }

    /// The request's body broke off before its end.
    pub fn client_failed(&self) {
        self.client_failed.set(true);
    }

    /// If the client broke off its request, or sent what is no HTTP, that is the cause of what followed.
    pub fn cause(&self, otherwise: Reason) -> Reason {
        match self.session.wire.violation() {
            Some(violation) if self.client_failed.get() => Refusal::from(violation).reason,
            None if self.client_failed.get() => Reason::ClientClosed,
            _ => otherwise,
        }
    }

    /// Closes the record.
    pub fn end(&self, outcome: impl Into<Outcome>, detail: Option<String>) {
        let Some(mut record) = self.record.borrow_mut().take() else {
            return;
        };
        record.request_bytes = self.request_bytes.get();
        record.response_bytes = self.response_bytes.get();
        if record.detail.is_none() {
            record.detail = detail;
        }
        record.end(outcome);
        drop(record);
        self.session.wire.request_ends();
    }

    /// The response cannot be completed: the client must not take what it has for the whole.
    pub fn broken(&self, reason: Reason, detail: Option<String>) {
        self.session.wire.set_broken();
        self.end(self.cause(reason), detail);
    }
}

impl Drop for Exchange {
    /// Nobody was left to finish it.
    fn drop(&mut self) {
        let ended = self.session.is_forced();
        let reason = if ended {
            Reason::DrainDeadline
        } else {
            self.cause(Reason::ClientClosed)
        };
        self.end(reason, None);
    }
}

/// What an error of hyper's client side says of the destination.
pub(super) fn upstream_reason(error: &(dyn StdError + 'static)) -> Reason {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return match error.kind() {
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Reason::UpstreamReset,
                io::ErrorKind::TimedOut => Reason::UpstreamReset,
                _ => Reason::UpstreamClosed,
            };
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && error.is_parse()
        {
            return Reason::UpstreamProtocol;
        }
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            if error.is_reset() {
                return Reason::UpstreamReset;
            }
            if error.is_library() {
                return Reason::UpstreamProtocol;
            }
        }
        source = error.source();
    }
    Reason::UpstreamClosed
}

/// Whether the peer broke the rules of HTTP/2.
pub(super) fn is_protocol_error(error: &hyper::Error) -> bool {
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|error| error.is_library() && !error.is_io())
}

/// The words of an error and its causes.
pub(super) fn words(error: &(dyn StdError + 'static)) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words.push_str(": ");
        words.push_str(&cause.to_string());
        source = cause.source();
    }
    words
}

/// Whom the request names: in its target, else in `Host`.
fn authority<B>(request: &Request<B>) -> Option<Authority> {
    if let Some(authority) = request.uri().authority() {
        return Some(authority.clone());
    }
    host(request.headers())
}

fn host(headers: &HeaderMap) -> Option<Authority> {
    Authority::try_from(headers.get(header::HOST)?.as_bytes()).ok()
}

fn add(counter: &Cell<u64>, bytes: usize) {
    counter.set(counter.get() + u64::try_from(bytes).unwrap_or(0));
}
