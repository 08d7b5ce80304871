//! Peers that vanished are noticed, peers that are only slow are not cut off.
//!
//! A peer that keeps its window closed is alive as long as it answers the kernel's probes. `TCP_USER_TIMEOUT` ends its
//! connection all the same, as it counts from the first probe (`tcp_probe_timer` in net/ipv4/tcp_timer.c). Without it
//! the kernel goes by unanswered probes and retransmissions, `net.ipv4.tcp_retries2` of them; only that the time between
//! two grows to two minutes. Linux 6.15 lets a socket bound that time.

use std::{cell::Cell, fs, io, sync::OnceLock, time::Duration};

use socket2::{SockRef, TcpKeepalive};

use crate::{model::Timeouts, sys::sockopt};

/// What the kernel takes for a bound (`TCP_RTO_MAX_MS`).
const SHORTEST_BOUND_MS: u64 = 1000;
const LONGEST_BOUND_MS: u64 = 120_000;
/// Where retransmission begins (`TCP_RTO_MIN`); the real one follows the round trip and is a little longer.
const FIRST: Duration = Duration::from_millis(200);
/// Before Linux 6.15: long enough for most that are only slow.
const USER_TIMEOUT_AT_LEAST: Duration = Duration::from_secs(120);

/// Sets what a listener or a connected socket needs. Accepted sockets inherit it. It is several system calls: whoever
/// dials does it once a connection has lived for a while, or is going to.
pub(crate) fn watch(socket: &SockRef<'_>, timeouts: &Timeouts) -> io::Result<()> {
    if !timeouts.keepalive.is_zero() {
        // Probes follow each other quickly, so that a dead peer is found soon after the first one.
        let interval =
            (timeouts.keepalive / 4).clamp(Duration::from_secs(1), Duration::from_secs(15));
        let keepalive =
            TcpKeepalive::new().with_time(timeouts.keepalive.max(Duration::from_secs(1)));
        socket.set_tcp_keepalive(&keepalive.with_interval(interval).with_retries(4))?;
    }
    if timeouts.user.is_zero() {
        return Ok(());
    }
    let bound = bound_for(timeouts.user, retries());
    if sockopt::set_longest_retransmission(&**socket, bound).is_err() {
        socket.set_tcp_user_timeout(Some(timeouts.user.max(USER_TIMEOUT_AT_LEAST)))?;
    }
    Ok(())
}

/// As [`find_bound`], which is the same for most connections.
fn bound_for(user: Duration, retries: u32) -> Duration {
    thread_local! {
        static LAST: Cell<Option<(Duration, u32, Duration)>> = const { Cell::new(None) };
    }
    match LAST.get() {
        Some((same_user, same_retries, bound)) if (same_user, same_retries) == (user, retries) => {
            bound
        }
        _ => {
            let bound = find_bound(user, retries);
            LAST.set(Some((user, retries, bound)));
            bound
        }
    }
}

/// How often the kernel asks in vain, in the network namespace of this process.
fn retries() -> u32 {
    static RETRIES: OnceLock<u32> = OnceLock::new();
    *RETRIES.get_or_init(|| {
        let text = fs::read_to_string("/proc/sys/net/ipv4/tcp_retries2").unwrap_or_default();
        text.trim().parse().unwrap_or(15)
    })
}

/// The shortest bound with which `retries` take as long as `user`, as nearly as the kernel allows.
fn find_bound(user: Duration, retries: u32) -> Duration {
    let (mut low_ms, mut high_ms) = (SHORTEST_BOUND_MS, LONGEST_BOUND_MS);
    while low_ms < high_ms {
        let middle_ms = (low_ms + high_ms) / 2;
        if patience(Duration::from_millis(middle_ms), retries) < user {
            low_ms = middle_ms + 1;
        } else {
            high_ms = middle_ms;
        }
    }
    Duration::from_millis(low_ms)
}

/// How long the kernel waits for an answer: pauses double up to the bound, and there is one more than retransmissions.
fn patience(bound: Duration, retries: u32) -> Duration {
    let pauses = (0..=retries.min(1000)).scan(FIRST, |pause, _| {
        let this = (*pause).min(bound);
        *pause = pause.saturating_mul(2).min(bound);
        Some(this)
    });
    pauses.sum()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_bound_follows_time_and_retries() {
        let bound_ms = |user, retries| bound_for(Duration::from_secs(user), retries).as_millis();
        // Linux' own 15 retries: 0.2, 0.4, 0.8 and 1.6 s, then 12 times the bound.
        assert_eq!(bound_ms(30, 15), 2250);
        assert_eq!(bound_ms(27, 15), 2000);
        // 0.2 to 3.2 s, then 4 times the bound.
        assert_eq!(bound_ms(30, 8), 5950);
        // What cannot be reached comes as near as can be.
        assert_eq!(bound_ms(1, 15), 1000);
        assert_eq!(bound_ms(1800, 3), 120_000);
        // The kernel's own time, as tcp(7) has it.
        let unbounded = patience(Duration::from_millis(LONGEST_BOUND_MS), 15);
        assert_eq!(unbounded, Duration::from_millis(924_600));
    }

    /// Whichever of the two ways the kernel knows.
    #[test]
    fn accepted_sockets_inherit_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        watch(&SockRef::from(&listener), &Timeouts::default()).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = listener.accept().unwrap().0;
        let bound = bound_for(Timeouts::default().user, retries());
        match sockopt::longest_retransmission(&accepted) {
            // Rounded to the kernel's ticks.
            Ok(set) => assert!(set.abs_diff(bound) < Duration::from_millis(20), "{set:?}"),
            Err(_) => assert_eq!(
                SockRef::from(&accepted).tcp_user_timeout().unwrap(),
                Some(USER_TIMEOUT_AT_LEAST)
            ),
        }
    }
}
