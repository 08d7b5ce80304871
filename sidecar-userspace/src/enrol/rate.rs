//! How much a pod may ask of the agent: a token bucket over all its connections, whichever socket they come from.

use std::time::{Duration, Instant};

/// Tokens that a pod may spend at once, and how long each takes to come back.
const BURST: u32 = 20;
const ONE_IN: Duration = Duration::from_millis(500);

/// Of one pod.
#[derive(Debug)]
pub struct Bucket {
    /// When it will be full again.
    full_at: Instant,
}

impl Bucket {
    pub fn full(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes tokens that are there, or are to come.
    pub fn spend(&mut self, tokens: u32, now: Instant) {
        self.full_at = self.full_at.max(now) + ONE_IN * tokens;
    }

    /// How long until nothing is owed.
    pub fn debt(&self, now: Instant) -> Duration {
        let missing = self.full_at.saturating_duration_since(now);
        missing.saturating_sub(ONE_IN * BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spent_comes_back_in_time() {
        let start = Instant::now();
        let mut bucket = Bucket::full(start);
        for _ in 0..BURST {
            assert_eq!(bucket.debt(start), Duration::ZERO);
            bucket.spend(1, start);
        }
        assert_eq!(bucket.debt(start), Duration::ZERO);
        bucket.spend(2, start);
        assert_eq!(bucket.debt(start), ONE_IN * 2);
        assert_eq!(bucket.debt(start + ONE_IN * 2), Duration::ZERO);
        // No more than the burst is saved up.
        let later = start + Duration::from_secs(3600);
        bucket.spend(BURST + 1, later);
        assert_eq!(bucket.debt(later), ONE_IN);
    }

    #[test]
    fn whoever_never_pauses_gets_its_share_and_no_more() {
        let start = Instant::now();
        let mut bucket = Bucket::full(start);
        let mut spent = 0;
        // Four connections that all try every 10 ms, for a minute.
        for step in 0..6000 {
            let now = start + Duration::from_millis(10) * step;
            if bucket.debt(now).is_zero() {
                for _ in 0..4 {
                    bucket.spend(1, now);
                    spent += 1;
                }
            }
        }
        assert!((120..=120 + BURST + 8).contains(&spent), "{spent}");
    }
}
