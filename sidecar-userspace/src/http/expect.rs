//! `Expect: 100-continue` from end to end: the body waits until the destination asks for it.
//!
//! hyper tells the client to go on as soon as somebody reads the request's body, and would read it for the
//! destination at once. The gate keeps it from reading until the destination said `100 Continue`. If it has
//! nothing to say, the body goes after a while, as RFC 9110, 10.1.1, has clients do.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{HeaderMap, Request, StatusCode, header};
use tokio::time::{Sleep, sleep};

/// curl waits as long for its own server.
const PATIENCE: Duration = Duration::from_secs(1);

/// Closed until the destination says `100 Continue`, or patience ends.
pub(super) struct Gate {
    shared: Arc<Shared>,
    patience: Pin<Box<Sleep>>,
}

/// hyper wants its callback to be `Send`; both ends are on one thread nevertheless.
#[derive(Default)]
struct Shared {
    open: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

/// Whether the client waits for leave to send its body.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    headers
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

impl Gate {
    /// A gate that the responses to `request` open.
    pub fn before<B>(request: &mut Request<B>) -> Self {
        let shared = Arc::new(Shared::default());
        let opener = shared.clone();
        hyper::ext::on_informational(request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                opener.open.store(true, Ordering::Relaxed);
                let mut waker = opener.waker.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(waker) = waker.take() {
                    waker.wake();
                }
            }
        });
        Self {
            shared,
            patience: Box::pin(sleep(PATIENCE)),
        }
    }

    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.shared.open.load(Ordering::Relaxed) || self.patience.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut waker = self
            .shared
            .waker
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
