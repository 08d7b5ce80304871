//! Waiting for something with a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

const INTERVAL: Duration = Duration::from_millis(10);

/// Asks `probe` again and again until it has an answer; an error that names `what` after `limit`.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = probe()? {
            return Ok(answer);
        }
        if started.elapsed() > limit {
            bail!("waited {limit:?} in vain for {what}");
        }
        thread::sleep(INTERVAL);
    }
}

/// As [`until`], for a condition.
pub fn until_true(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<bool>,
) -> Result<()> {
    until(what, limit, || Ok(probe()?.then_some(())))
}
