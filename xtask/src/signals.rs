//! Ctrl-C and friends set a flag, so that whatever was begun (a `policy-rc.d`, namespaces, cgroups) is undone on the way out.

use anyhow::{Context as _, Result};
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

/// SIGINT, SIGTERM, SIGHUP.
const SIGNALS: [(i32, usize); 3] = [(2, 2), (15, 15), (1, 1)];

/// The number of the last signal, 0 for none. Lives as long as the process.
static LAST: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// Turns the ending signals into a flag that [`interrupted`] reads.
///
/// # Errors
/// If a handler cannot be installed.
pub fn watch() -> Result<()> {
    let last = LAST.get_or_init(Arc::default);
    for (signal, value) in SIGNALS {
        signal_hook::flag::register_usize(signal, Arc::clone(last), value)
            .context("installing a signal handler")?;
    }
    Ok(())
}

/// The number of the signal that asked this process to end, if one did.
pub fn interrupted() -> Option<usize> {
    let number = LAST.get()?.load(Ordering::Relaxed);
    (number != 0).then_some(number)
}
