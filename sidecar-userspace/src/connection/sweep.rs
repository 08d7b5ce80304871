//! What pools keep and nobody asks for again must go, too.

use std::{cell::Cell, rc::Rc, time::Duration};

/// A worker's pool of connections.
pub trait Sweep: 'static {
    /// Drops what is closed or was idle for too long; `false` if nothing is left to look after.
    fn sweep(&self) -> bool;

    /// Whether somebody sweeps.
    fn swept(&self) -> &Cell<bool>;
}

/// Sweeps from now on, until nothing is left. `idle_timeout`: after which something has to go.
pub fn start(pool: &Rc<impl Sweep>, idle_timeout: Duration) {
    if pool.swept().replace(true) {
        return;
    }
    let pool = Rc::downgrade(pool);
    let period = (idle_timeout / 4).clamp(Duration::from_millis(100), Duration::from_secs(5));
    tokio::task::spawn_local(async move {
        loop {
            tokio::time::sleep(period).await;
            let Some(pool) = pool.upgrade() else { return };
            if !pool.sweep() {
                pool.swept().set(false);
                return;
            }
        }
    });
}
