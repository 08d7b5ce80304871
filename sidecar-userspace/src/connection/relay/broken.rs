//! What the failure of one side of a relay says of the connection.

use std::io;

use tokio::net::TcpStream;

use super::{End, Reason};
use crate::tls::failure;

/// Which side of a direction failed.
pub(super) enum Failure {
    Sender(io::Error),
    Receiver(io::Error),
}

impl Failure {
    /// Of the direction from the client to upstream.
    pub fn to_upstream(&self) -> End {
        match self {
            Self::Sender(error) => client(error),
            Self::Receiver(error) => upstream(error),
        }
    }

    /// Of the direction from upstream to the client.
    pub fn to_client(&self) -> End {
        match self {
            Self::Sender(error) => upstream(error),
            Self::Receiver(error) => client(error),
        }
    }
}

/// A failure of a socket on which the relay neither reads nor writes just now: the receiver is slow, or the
/// sender has ended.
pub(super) fn unseen(of_client: &TcpStream, of_upstream: &TcpStream) -> Option<End> {
    let error = |socket: &TcpStream| socket.take_error().ok().flatten();
    let end = error(of_client).map(|error| client(&error));
    end.or_else(|| error(of_upstream).map(|error| upstream(&error)))
}

pub(super) fn client(error: &io::Error) -> End {
    end(error, Reason::ClientLost, Reason::ClientReset)
}

pub(super) fn upstream(error: &io::Error) -> End {
    end(error, Reason::UpstreamLost, Reason::UpstreamReset)
}

fn end(error: &io::Error, lost: Reason, reset: Reason) -> End {
    let reason = match failure::reason(error) {
        Some(reason) => reason,
        None if vanished(error) => lost,
        None => reset,
    };
    (reason.into(), Some(error.to_string()))
}

/// The peer did not say anything: the kernel or the network gave it up.
fn vanished(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(
        error.kind(),
        K::TimedOut | K::HostUnreachable | K::NetworkUnreachable | K::NetworkDown
    )
}
