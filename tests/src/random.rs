//! A small generator that repeats itself from a seed. Not for secrets.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::stream::mix;

/// splitmix64.
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A seed that differs from run to run.
    pub fn fresh_seed() -> u64 {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        mix(now.as_nanos() as u64 ^ u64::from(std::process::id()) << 32) >> 16
    }

    pub fn word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// Evenly from `0..bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(bound)) >> 64) as u64
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// From `1..=limit`, every order of magnitude as likely as the next.
    pub fn size(&mut self, limit: u64) -> u64 {
        let bits = self.below(u64::from(u64::BITS - limit.max(1).leading_zeros()));
        let low = 1 << bits;
        (low + self.below(low)).min(limit.max(1))
    }

    /// Up to `limit`, short ones far more often than long ones.
    pub fn pause(&mut self, limit: Duration) -> Duration {
        Duration::from_micros(self.size(limit.as_micros() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_cover_their_range() {
        let random = &mut Random::new(1);
        let sizes: Vec<u64> = (0..10_000).map(|_| random.size(1 << 20)).collect();
        assert!(sizes.iter().all(|size| (1..=1 << 20).contains(size)));
        assert!(sizes.contains(&1) && sizes.iter().any(|size| *size > 1 << 19));
        assert_eq!(random.size(1), 1);
        assert_eq!(random.size(0), 1);
    }
}
