//! Memory that is not needed any more goes back to the kernel: soon after the start, which needs much, and when a burst of
//! connections is over.

use std::{convert::Infallible, time::Duration};

use tracing::debug;

use crate::sys::memory;

/// By then the rest of the start is over, too.
const FIRST: Duration = Duration::from_secs(1);
/// How often connections are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// Fewer at most leave nothing worth giving back.
const BURST: usize = 64;

/// `connections`: how many are served now.
pub async fn keep(connections: impl Fn() -> usize) -> Infallible {
    memory::trim();
    tokio::time::sleep(FIRST).await;
    memory::trim();
    if let Err(error) = memory::forget_program() {
        debug!(%error, "the pages of the program's start stay in memory");
    }
    let mut most = 0;
    loop {
        tokio::time::sleep(LOOK).await;
        let now = connections();
        if is_over(most, now) {
            memory::trim();
            most = now;
        }
        most = most.max(now);
    }
}

/// Whether a burst that had `most` connections is over with `now`. Trimming holds up whoever allocates, for about a
/// millisecond: not while much is going on.
fn is_over(most: usize, now: usize) -> bool {
    most >= BURST && now <= most / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_over_when_most_have_gone() {
        assert!(!is_over(0, 0));
        assert!(!is_over(BURST - 1, 0));
        assert!(!is_over(1000, 900));
        assert!(is_over(1000, 250));
    }
}
