//! What the process's memory is used for, planned at start: so many bytes that wait for slow receivers, so many connections.

use crate::sys::memory_limit::MemoryLimit;

/// The program itself, its configuration, and what its parts keep for themselves.
const PROGRAM_BYTES: u64 = 32 << 20;
/// One connection without a backlog: two sockets, its task, the least that it may hold in either direction, and where it has
/// them the buffers of HTTP.
const CONNECTION_BYTES: u64 = 32 << 10;
/// Of the whole, for backlogs.
const BACKLOG_PART: u64 = 4;
/// More helps nobody.
const MOST_BACKLOG_BYTES: u64 = 1 << 30;
/// However little memory there is, so many connections are tried.
const LEAST_CONNECTIONS: usize = 64;
/// However much there is, a workload with more connections says so in its configuration.
const MOST_CONNECTIONS: usize = 10_000;

/// How a process divides its memory. The workers share the backlog evenly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// `None`: unknown, as /proc is not mounted.
    pub limit: Option<MemoryLimit>,
    /// Bytes that were read and wait for their receiver, of all connections.
    pub backlog_bytes: u64,
    /// Connections served at once, where the configuration does not say.
    pub connections: usize,
}

impl MemoryPlan {
    /// Of this process, by the limit that it has now.
    pub fn of_this_process() -> Self {
        Self::of(MemoryLimit::of_this_process())
    }

    pub fn of(limit: Option<MemoryLimit>) -> Self {
        // Unknown: as before there were limits.
        let bytes = limit.as_ref().map_or(u64::MAX, |limit| limit.bytes);
        let backlog_bytes = (bytes / BACKLOG_PART).min(MOST_BACKLOG_BYTES);
        let rest = bytes.saturating_sub(backlog_bytes + PROGRAM_BYTES);
        let connections = usize::try_from(rest / CONNECTION_BYTES).unwrap_or(usize::MAX);
        Self {
            limit,
            backlog_bytes,
            connections: connections.clamp(LEAST_CONNECTIONS, MOST_CONNECTIONS),
        }
    }

    /// Of `workers` each.
    pub fn backlog_of_each(&self, workers: usize) -> usize {
        usize::try_from(self.backlog_bytes).unwrap_or(usize::MAX) / workers.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(bytes: u64) -> (u64, usize) {
        let limit = MemoryLimit {
            bytes,
            source: "memory.max".into(),
        };
        let plan = MemoryPlan::of(Some(limit));
        (plan.backlog_bytes >> 20, plan.connections)
    }

    #[test]
    fn connections_follow_the_limit() {
        // What the injector asks for.
        assert_eq!(plan(512 << 20), (128, 10_000));
        assert_eq!(plan(256 << 20), (64, 5_120));
        assert_eq!(plan(128 << 20), (32, 2_048));
        assert_eq!(plan(48 << 20), (12, 128));
        assert_eq!(plan(8 << 20), (2, LEAST_CONNECTIONS));
        assert_eq!(plan(64 << 30), (1024, 10_000));
        assert_eq!(MemoryPlan::of(None).connections, 10_000);
    }

    #[test]
    fn all_of_it_fits_into_the_limit() {
        for mebibytes in 48..1024_u64 {
            let (backlog, connections) = plan(mebibytes << 20);
            let used = (backlog << 20) + PROGRAM_BYTES + connections as u64 * CONNECTION_BYTES;
            assert!(used <= mebibytes << 20, "{mebibytes} MiB");
        }
    }
}
