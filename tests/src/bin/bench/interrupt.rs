//! Ctrl-C and friends set a flag: what was begun is taken apart in order.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result, bail};

/// SIGHUP, SIGINT, SIGTERM.
const SIGNALS: [(i32, usize); 3] = [(1, 1), (2, 2), (15, 15)];

/// The number of the last signal, 0 for none. Lives as long as the process.
static LAST: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

pub fn watch() -> Result<()> {
    let last = LAST.get_or_init(Arc::default);
    for (signal, value) in SIGNALS {
        signal_hook::flag::register_usize(signal, last.clone(), value)
            .context("installing a signal handler")?;
    }
    Ok(())
}

/// The number of the signal that asked for the end.
pub fn number() -> Option<u8> {
    let number = LAST.get()?.load(Ordering::Relaxed);
    u8::try_from(number).ok().filter(|number| *number != 0)
}

/// An error once somebody asked for the end.
pub fn check() -> Result<()> {
    if number().is_some() {
        bail!("interrupted");
    }
    Ok(())
}
