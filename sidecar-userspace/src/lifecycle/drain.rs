//! Drain: tell every connection that the end is near, wait until they are gone, and at the deadline end them.
//!
//! A connection holds a [`Guard`] for its life. Listeners stay open meanwhile: the application may still need
//! its outbound connections while it finishes, and a closed inbound listener would send new connections past
//! the proxy.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// How far the drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// No new work on kept-alive connections; what runs may finish.
    Draining,
    /// Connections that are still there are reset.
    Ended,
}

/// The side that starts the drain and waits for its end. One per proxy.
#[derive(Debug)]
pub struct Drain {
    phase: watch::Sender<Phase>,
    /// Handed out in clones; when all are dropped `gone` yields `None`.
    guard: mpsc::Sender<()>,
    gone: mpsc::Receiver<()>,
}

impl Default for Drain {
    fn default() -> Self {
        let (guard, gone) = mpsc::channel(1);
        Self {
            phase: watch::Sender::new(Phase::Serving),
            guard,
            gone,
        }
    }
}

impl Drain {
    /// A signal for one worker; it makes the guards for the connections.
    pub fn signal(&self) -> DrainSignal {
        DrainSignal {
            phase: self.phase.subscribe(),
            guard: self.guard.downgrade(),
        }
    }

    /// A handle that can move the phase on from elsewhere, such as a second signal.
    pub fn trigger(&self) -> DrainTrigger {
        DrainTrigger(self.phase.clone())
    }

    /// Starts the drain and returns when no connection is left, at the latest shortly after `deadline`.
    /// `true` if all ended by themselves.
    pub async fn run(self, deadline: Duration) -> bool {
        let Self {
            phase,
            guard,
            mut gone,
        } = self;
        drop(guard);
        advance(&phase, Phase::Draining);
        let mut signal = phase.subscribe();
        let clean = tokio::select! {
            _ = gone.recv() => true,
            () = tokio::time::sleep(deadline) => false,
            _ = signal.wait_for(|phase| *phase == Phase::Ended) => false,
        };
        advance(&phase, Phase::Ended);
        if !clean {
            // Connections see `Ended`, reset both sides and record their outcome; that takes no network.
            let _ = tokio::time::timeout(Duration::from_millis(500), gone.recv()).await;
        }
        clean
    }
}

/// Moves the drain on; see [`Drain::trigger`].
#[derive(Debug, Clone)]
pub struct DrainTrigger(watch::Sender<Phase>);

impl DrainTrigger {
    /// Ends every connection now.
    pub fn end_now(&self) {
        advance(&self.0, Phase::Ended);
    }
}

/// What a connection sees of the drain. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DrainSignal {
    phase: watch::Receiver<Phase>,
    guard: mpsc::WeakSender<()>,
}

impl DrainSignal {
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub fn is_draining(&self) -> bool {
        self.phase() >= Phase::Draining
    }

    /// Resolves when the drain has reached `phase`, at once if it already has.
    pub async fn reached(&self, phase: Phase) {
        let mut receiver = self.phase.clone();
        // An error means that the proxy is gone, and with it every connection.
        let _ = receiver.wait_for(|now| *now >= phase).await;
    }

    /// Keeps the drain waiting until it is dropped.
    pub fn guard(&self) -> Guard {
        Guard {
            _sender: self.guard.upgrade(),
        }
    }
}

/// Held by every connection for its life.
#[derive(Debug)]
pub struct Guard {
    /// `None`: taken when every connection had gone already and the drain was over.
    _sender: Option<mpsc::Sender<()>>,
}

/// The phase only moves forward.
fn advance(phase: &watch::Sender<Phase>, to: Phase) {
    phase.send_if_modified(|now| {
        let moved = *now < to;
        *now = (*now).max(to);
        moved
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_the_last_guard() {
        let drain = Drain::default();
        let signal = drain.signal();
        let guard = signal.guard();
        let run = tokio::spawn(drain.run(Duration::from_secs(5)));
        signal.reached(Phase::Draining).await;
        assert_eq!(signal.phase(), Phase::Draining);
        drop(guard);
        assert!(run.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_ends_what_is_left() {
        let drain = Drain::default();
        let signal = drain.signal();
        let guard = signal.guard();
        let run = tokio::spawn(drain.run(Duration::from_secs(5)));
        signal.reached(Phase::Ended).await;
        drop(guard);
        assert!(!run.await.unwrap());
    }
}
