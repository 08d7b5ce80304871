//! The clocks of a client connection, and the drain: one timer, set anew only when it has run out too early.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use tokio::time::{Sleep, sleep_until};

use super::wire::{Phase, Wire};
use crate::{
    lifecycle::drain::{self, DrainSignal},
    model::Timeouts,
};

/// What the connection has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alarm {
    /// Nothing was asked for a while, or the sidecar is leaving: take no more requests.
    Finish,
    /// A head is not complete in time.
    Slow,
    /// The drain's deadline has come: end now.
    Force,
}

pub(super) struct Watch {
    idle: Duration,
    head: Duration,
    timer: Pin<Box<Sleep>>,
    drain: DrainSignal,
    /// Resolves at the drain's next phase.
    drained: Pin<Box<dyn Future<Output = ()>>>,
    /// Who is woken by it. While serving it is asked again only when that has changed, as asking takes a lock.
    waker: Option<Waker>,
    finishing: bool,
    /// How long the next request is waited for once the sidecar is leaving, and until when that is.
    patience: Duration,
    last_call: Option<Instant>,
}

impl Watch {
    /// `patience`: how long a client that has nothing under way when the sidecar leaves may still ask for one thing, whose answer
    /// tells it to connect anew. Closed at once, its next request might be on its way already, and be lost.
    pub fn new(timeouts: &Timeouts, drain: &DrainSignal, patience: Duration) -> Self {
        let first = Instant::now() + timeouts.request_head.min(timeouts.http_idle);
        Self {
            idle: timeouts.http_idle,
            head: timeouts.request_head,
            timer: Box::pin(sleep_until(first.into())),
            drain: drain.clone(),
            drained: next(drain, drain::Phase::Draining),
            waker: None,
            finishing: false,
            patience,
            last_call: None,
        }
    }

    pub fn poll(&mut self, cx: &mut Context<'_>, wire: &Wire) -> Poll<Alarm> {
        if let Some(alarm) = self.poll_drain(cx) {
            return Poll::Ready(alarm);
        }
        loop {
            let (phase, since) = wire.phase();
            let (due, alarm) = match (phase, self.last_call) {
                // The answer says that it is the last one.
                (Phase::Busy, Some(_)) if !self.finishing => {
                    self.finishing = true;
                    return Poll::Ready(Alarm::Finish);
                }
                (Phase::Idle | Phase::Head, Some(last_call)) if !self.finishing => {
                    (last_call, Alarm::Finish)
                }
                (Phase::Idle, None) if !self.finishing => (since + self.idle, Alarm::Finish),
                (Phase::Head, _) => (since + self.head, Alarm::Slow),
                (Phase::Idle | Phase::Busy, _) => return Poll::Pending,
            };
            if self.timer.deadline() > due.into() {
                self.timer.as_mut().reset(due.into());
            }
            ready!(self.timer.as_mut().poll(cx));
            if Instant::now() >= due {
                self.finishing |= alarm == Alarm::Finish;
                return Poll::Ready(alarm);
            }
            self.timer.as_mut().reset(due.into());
        }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Option<Alarm> {
        let phase = self.drain.phase();
        if phase == drain::Phase::Ended {
            return Some(Alarm::Force);
        }
        if phase == drain::Phase::Draining && self.last_call.is_none() {
            self.last_call = Some(Instant::now() + self.patience);
            self.drained = next(&self.drain, drain::Phase::Ended);
        }
        let known = self
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()));
        // While serving, only a change of phase wakes, so that one question suffices. Later the wake-up may be
        // that of the change which was seen already, and has used up what was registered.
        if phase != drain::Phase::Serving || !known {
            self.waker = Some(cx.waker().clone());
            if self.drained.as_mut().poll(cx).is_ready() {
                // The phase has changed since it was read.
                cx.waker().wake_by_ref();
                self.waker = None;
                self.drained = next(&self.drain, drain::Phase::Ended);
            }
        }
        None
    }
}

fn next(drain: &DrainSignal, phase: drain::Phase) -> Pin<Box<dyn Future<Output = ()>>> {
    let drain = drain.clone();
    Box::pin(async move { drain.reached(phase).await })
}
