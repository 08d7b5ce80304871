//! Joined sockets: where the relay only passes bytes on between applications of this node, the kernel half sends later
//! messages past it (ARCHITECTURE.md, "Joined hops"). The relay says once that it relays between the two sockets, and then,
//! each time it has passed on all that there was, that nothing is under way: only then may messages go past it. What did not
//! go past it comes here as ever.

use std::os::fd::AsFd;

use crate::sys::sockopt;

/// Turns in which bytes moved before the sockets are joined: a connection for one request is not worth it.
const JOIN_AFTER_TURNS: u8 = 4;
/// Where messages keep coming in spite of it, it is said more and more rarely: once in so many turns at last.
const RAREST: u32 = 256;

/// Of one connection.
#[derive(Debug)]
pub(super) enum Join {
    /// Not yet: turns so far.
    Waiting(u8),
    Joined(Box<Joined>),
    /// The kernel half redirects nothing here.
    Never,
}

#[derive(Debug, Default)]
pub(super) struct Joined {
    to_upstream: Settling,
    to_client: Settling,
}

/// Of one direction.
#[derive(Debug)]
struct Settling {
    /// The receiver is an application, and nothing to it took TCP.
    possible: bool,
    /// Turns to let pass until the next time.
    rest_turns: u32,
    /// And how many that were the last time.
    pause_turns: u32,
    /// Bytes that had gone past the relay when that was looked at last.
    joined_bytes: u64,
}

/// One direction as the relay sees it after a turn.
pub(super) struct HalfRelay<'a, S> {
    pub from: &'a S,
    pub to: &'a S,
    /// Bytes that the relay has passed on so far.
    pub passed_bytes: u64,
    /// Something moved in this turn, and nothing is left to be written.
    pub settled: bool,
}

impl Default for Join {
    fn default() -> Self {
        Self::Waiting(0)
    }
}

impl Default for Settling {
    fn default() -> Self {
        Self {
            possible: true,
            rest_turns: 0,
            pause_turns: 0,
            joined_bytes: 0,
        }
    }
}

impl Join {
    /// The relay found nothing more to read. Gives for each direction whether what it knows of the room for it is out of
    /// date from now on, as messages may go past it.
    pub fn turn<S: AsFd>(
        &mut self,
        to_upstream: &HalfRelay<'_, S>,
        to_client: &HalfRelay<'_, S>,
    ) -> (bool, bool) {
        if let Self::Waiting(turns) = self {
            *turns += 1;
            if *turns < JOIN_AFTER_TURNS {
                return (false, false);
            }
            *self = match sockopt::join(to_upstream.from, to_upstream.to) {
                Ok(()) => Self::Joined(Box::default()),
                Err(_) => Self::Never,
            };
        }
        match self {
            Self::Joined(joined) => (
                joined.to_upstream.turn(to_upstream),
                joined.to_client.turn(to_client),
            ),
            Self::Waiting(_) | Self::Never => (false, false),
        }
    }

    /// Bytes that went past the relay, to upstream and to the client.
    pub fn bytes<S: AsFd>(&self, client: &S, upstream: &S) -> (u64, u64) {
        match self {
            Self::Joined(_) => (
                sockopt::bypassed_bytes(client).unwrap_or(0),
                sockopt::bypassed_bytes(upstream).unwrap_or(0),
            ),
            Self::Waiting(_) | Self::Never => (0, 0),
        }
    }
}

impl Settling {
    fn turn<S: AsFd>(&mut self, direction: &HalfRelay<'_, S>) -> bool {
        if !self.possible || !direction.settled {
            return false;
        }
        if self.rest_turns > 0 {
            self.rest_turns -= 1;
            return false;
        }
        if sockopt::settle(direction.to, direction.passed_bytes).is_err() {
            self.possible = false;
            return false;
        }
        let joined_bytes = sockopt::bypassed_bytes(direction.from).unwrap_or(0);
        self.pause_turns = match joined_bytes == self.joined_bytes {
            true => (self.pause_turns * 2 + 1).min(RAREST),
            false => 0,
        };
        self.joined_bytes = joined_bytes;
        self.rest_turns = self.pause_turns;
        true
    }
}
