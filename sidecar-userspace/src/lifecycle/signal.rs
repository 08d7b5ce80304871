//! Signals of the process, in the words of the proxy.

use std::io;

use tokio::signal::unix::{Signal as Source, SignalKind, signal};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT. The first one drains, a second one ends at once.
    Terminate,
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGUSR1: open the access log again.
    ReopenLogs,
}

/// The signals of this process, taken from their default action as long as this lives.
#[derive(Debug)]
pub struct Signals {
    terminate: Source,
    interrupt: Source,
    hangup: Source,
    user1: Source,
}

impl Signals {
    /// Needs a tokio runtime. Fails if the handlers cannot be installed.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
        })
    }

    /// The next signal; may be dropped and called again without losing one.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.interrupt.recv() => Signal::Terminate,
            _ = self.hangup.recv() => Signal::Reload,
            _ = self.user1.recv() => Signal::ReopenLogs,
        }
    }
}
