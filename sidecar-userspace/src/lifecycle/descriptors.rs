//! File descriptors: how many the process may have.

use std::{fs, io, sync::OnceLock};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// Descriptors kept free for everything that is not a served connection: listeners, logs, admin, resolver.
const RESERVED: usize = 64;

/// The limit that this process was started with.
static BEFORE: OnceLock<Rlimit> = OnceLock::new();

/// Raises the process's soft limit to its hard limit; the soft one is low for the sake of `select(2)`, which is
/// not used here.
pub fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    BEFORE.get_or_init(|| limit);
    // `None` is no limit.
    if limit
        .current
        .is_some_and(|current| limit.maximum.is_none_or(|maximum| current < maximum))
    {
        limit.current = limit.maximum;
        // Refused under some seccomp profiles; the old limit stays.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// Gives a child the limit that this process was started with: the application may use `select(2)`.
pub fn restore_limit(child: Pid) -> io::Result<()> {
    let Some(before) = BEFORE.get() else {
        return Ok(());
    };
    prlimit(Some(child), Resource::Nofile, *before)?;
    Ok(())
}

/// Descriptors that connections may use, beside those that are open already.
pub fn available() -> usize {
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    limit().saturating_sub(open).saturating_sub(RESERVED)
}

fn limit() -> usize {
    let current = getrlimit(Resource::Nofile).current;
    current.map_or(usize::MAX, |current| {
        usize::try_from(current).unwrap_or(usize::MAX)
    })
}
