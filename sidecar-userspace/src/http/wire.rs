//! What the parts of one client connection tell each other: the reader, the requests, the clocks.

use std::{
    cell::{Cell, RefCell},
    task::{Context, Poll, Waker},
    time::Instant,
};

use http::Method;

use super::framing::Violation;
use crate::connection::buffers::{Buffers, Held};

/// Stands for a refused request; counts only while [`Wire::refusal`] holds the reason.
pub(super) const STAND_IN_METHOD: &str = "SIDECAR-REFUSED";

/// What the connection's parts, all on one thread, tell each other.
#[derive(Debug)]
pub(super) struct Wire {
    phase: Cell<Phase>,
    since: Cell<Instant>,
    /// Requests, all of the connection's.
    requests: Cell<u64>,
    /// Requests whose response is not complete.
    open_requests: Cell<u32>,
    refusal: Cell<Option<Violation>>,
    /// The head took too long; the reader is to refuse it.
    slow: Cell<bool>,
    decision: Cell<Option<bool>>,
    /// The reader has something to do that no byte from the client announces.
    poke: Cell<bool>,
    /// A response broke off: the client must not see an orderly end.
    broken: Cell<bool>,
    read_bytes: Cell<u64>,
    written_bytes: Cell<u64>,
    /// Of bodies for the client, not written yet.
    backlog: RefCell<Held>,
    /// Of the body that waits until there is less of it; over HTTP/1.1 there is one at a time.
    held_back: RefCell<Option<Waker>>,
}

/// What the connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The next request.
    Idle,
    /// The rest of a head.
    Head,
    /// The end of a response.
    Busy,
}

impl Wire {
    /// `buffers`: of the worker, by whose budget goes what waits for the client.
    pub fn new(buffers: &Buffers) -> Self {
        Self {
            phase: Cell::new(Phase::Idle),
            since: Cell::new(Instant::now()),
            requests: Cell::default(),
            open_requests: Cell::default(),
            refusal: Cell::default(),
            slow: Cell::default(),
            decision: Cell::default(),
            poke: Cell::default(),
            broken: Cell::default(),
            read_bytes: Cell::default(),
            written_bytes: Cell::default(),
            backlog: RefCell::new(buffers.hold(0)),
            held_back: RefCell::default(),
        }
    }

    /// A request has arrived.
    pub fn request_begins(&self) {
        self.requests.set(self.requests.get() + 1);
        self.open_requests.set(self.open_requests.get() + 1);
        self.phase.set(Phase::Busy);
        self.decision.set(None);
    }

    /// Its response is complete, or will never be.
    pub fn request_ends(&self) {
        self.open_requests
            .set(self.open_requests.get().saturating_sub(1));
        if self.open_requests.get() == 0 {
            self.enter(Phase::Idle);
        }
    }

    pub fn requests(&self) -> u64 {
        self.requests.get()
    }

    pub fn phase(&self) -> (Phase, Instant) {
        (self.phase.get(), self.since.get())
    }

    /// Why `method` is no request of the client's, if it is not.
    pub fn refusal(&self, method: &Method) -> Option<Violation> {
        self.refusal
            .get()
            .filter(|_| method.as_str() == STAND_IN_METHOD)
    }

    /// The violation found on this connection, answered or not.
    pub fn violation(&self) -> Option<Violation> {
        self.refusal.get()
    }

    /// The response to CONNECT or to a request to upgrade: whether the protocol changes.
    pub fn decide(&self, opaque: bool) {
        self.decision.set(Some(opaque));
        self.poke.set(true);
    }

    pub fn set_slow(&self) {
        self.slow.set(true);
    }

    pub fn take_poke(&self) -> bool {
        self.poke.take()
    }

    pub fn set_broken(&self) {
        self.broken.set(true);
    }

    pub fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// Bytes from and to the client.
    pub fn bytes(&self) -> (u64, u64) {
        (self.read_bytes.get(), self.written_bytes.get())
    }

    pub fn read(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(0);
        self.read_bytes.set(self.read_bytes.get() + bytes);
    }

    pub fn wrote(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(0);
        self.written_bytes.set(self.written_bytes.get() + bytes);
        let mut backlog = self.backlog.borrow_mut();
        if backlog.bytes() > 0 {
            // Heads and what frames add are written, too: when all is written, it is nothing.
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            let left = backlog.bytes().saturating_sub(bytes);
            backlog.set(left);
        }
        drop(backlog);
        if let Some(body) = self.held_back.take() {
            body.wake();
        }
    }

    /// `bytes` of a body are going to be written.
    pub fn owes(&self, bytes: usize) {
        let mut backlog = self.backlog.borrow_mut();
        let more = backlog.bytes().saturating_add(bytes);
        backlog.set(more);
    }

    /// Ready when less than `bound` waits for the client.
    pub fn poll_backlog(&self, cx: &Context<'_>, bound: usize) -> Poll<()> {
        if self.backlog.borrow().bytes() < bound {
            return Poll::Ready(());
        }
        self.held_back.replace(Some(cx.waker().clone()));
        Poll::Pending
    }

    /// The first bytes of a head are there.
    pub fn head_begins(&self) {
        if self.phase.get() == Phase::Idle {
            self.enter(Phase::Head);
        }
    }

    pub fn refuse(&self, violation: Violation) {
        self.refusal.set(Some(violation));
    }

    pub fn take_slow(&self) -> bool {
        self.slow.take()
    }

    pub fn take_decision(&self) -> Option<bool> {
        self.decision.take()
    }

    pub fn has_open_requests(&self) -> bool {
        self.open_requests.get() > 0
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(Instant::now());
    }
}
