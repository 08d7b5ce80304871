//! Whether a tunnel's other side is still there: one that was silent for a while is asked, and has to answer.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

use super::PING_TIMEOUT;

/// One timer, set anew only when it has run out.
pub(super) struct Heart(Option<Asks>);

struct Asks {
    ping: PingPong,
    /// Of silence, before it is asked.
    interval: Duration,
    timer: Pin<Box<Sleep>>,
    /// When the timer was set.
    received_bytes: u64,
    asked: bool,
}

impl Heart {
    /// `interval`: zero never asks.
    pub fn new(ping: Option<PingPong>, interval: Duration) -> Self {
        let ping = ping.filter(|_| !interval.is_zero());
        Self(ping.map(|ping| Asks {
            ping,
            interval,
            timer: Box::pin(sleep(interval)),
            received_bytes: 0,
            asked: false,
        }))
    }

    /// Ready when the other side has not answered; `received_bytes`: from it, so far.
    pub fn poll_lost(&mut self, cx: &mut Context<'_>, received_bytes: u64) -> Poll<()> {
        let Some(asks) = &mut self.0 else {
            return Poll::Pending;
        };
        while asks.timer.as_mut().poll(cx).is_ready() {
            let silent = asks.received_bytes == received_bytes;
            asks.received_bytes = received_bytes;
            let wait = match (silent, asks.asked) {
                (true, true) => return Poll::Ready(()),
                (true, false) => {
                    // An answer to the one before may wait here and be in the way of the next.
                    let _ = asks.ping.poll_pong(cx);
                    // Fails on a connection that is ending, which says so itself.
                    let _ = asks.ping.send_ping(Ping::opaque());
                    PING_TIMEOUT
                }
                (false, _) => asks.interval,
            };
            asks.asked = silent;
            asks.timer.as_mut().reset(Instant::now() + wait);
        }
        Poll::Pending
    }
}
