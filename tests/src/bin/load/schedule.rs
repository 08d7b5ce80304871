//! When requests are due in an open loop: at a fixed rate, whatever became of those before.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

pub struct Schedule {
    start: Instant,
    interval: Duration,
    /// How many were due so far.
    count: u32,
    /// Due and not sent yet: no connection was free.
    waiting: VecDeque<Instant>,
}

impl Schedule {
    pub fn new(start: Instant, interval: Duration) -> Self {
        Self {
            start,
            interval,
            count: 0,
            waiting: VecDeque::new(),
        }
    }

    /// The first is due at `start`: in step with a timer that is set now.
    pub fn restart(&mut self, start: Instant) {
        *self = Self::new(start, self.interval);
    }

    /// Puts in line what has become due by `now`, and says how many that were.
    pub fn advance(&mut self, now: Instant) -> u32 {
        let before = self.count;
        loop {
            let due = self.start + self.interval * self.count;
            if due > now {
                return self.count - before;
            }
            self.waiting.push_back(due);
            self.count += 1;
        }
    }

    /// When the request was due that is to be sent next, if there is one.
    pub fn next(&mut self) -> Option<Instant> {
        self.waiting.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_due_at_the_rate_however_late_one_looks() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, Duration::from_millis(10));
        assert_eq!(schedule.advance(start + Duration::from_millis(35)), 4);
        let due: Vec<Duration> = std::iter::from_fn(|| schedule.next())
            .map(|due| due - start)
            .collect();
        assert_eq!(due, [0, 10, 20, 30].map(Duration::from_millis));
        assert_eq!(schedule.advance(start + Duration::from_millis(39)), 0);
        assert_eq!(schedule.next(), None);
    }
}
