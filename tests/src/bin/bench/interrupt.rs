//! Ctrl-C and friends set a flag: what was begun is taken apart in order.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, bail};

/// SIGHUP, SIGINT, SIGTERM.
const SIGNALS: [i32; 3] = [1, 2, 15];

/// Lives as long as the process.
static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

pub fn watch() -> Result<()> {
    let asked = ASKED.get_or_init(Arc::default);
    for signal in SIGNALS {
        signal_hook::flag::register(signal, asked.clone())
            .context("installing a signal handler")?;
    }
    Ok(())
}

/// An error once somebody asked for the end.
pub fn check() -> Result<()> {
    if ASKED
        .get()
        .is_some_and(|asked| asked.load(Ordering::Relaxed))
    {
        bail!("interrupted");
    }
    Ok(())
}
