//! What the traffic programs say when they are done: one JSON line on standard output.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{script::Script, stream::Corruption};

/// Details kept of each sort of failure; the counts are complete.
const DETAILS: usize = 5;

/// One end's account of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Seed of the run: connection seeds are drawn from it.
    pub seed: u64,
    /// Connections that came to their planned end.
    pub completed: u64,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub corrupted: u64,
    pub corruptions: Vec<Corruption>,
    pub failed: u64,
    /// What went wrong other than the bytes: errors of the sockets, hangs.
    pub failures: Vec<String>,
    /// What a kind of reader saw that is not wrong but worth counting, such as short `MSG_WAITALL` reads.
    pub oddities: BTreeMap<String, u64>,
    pub elapsed_seconds: f64,
}

impl Report {
    /// An error that shows the whole report unless every one of `connections` came to its end byte-exact.
    pub fn expect_exact(&self, connections: u64) -> Result<()> {
        let exact = self.corrupted == 0 && self.failed == 0 && self.completed == connections;
        ensure!(exact, "not {connections} byte-exact connections: {self:#?}");
        Ok(())
    }

    pub fn oddity(&self, name: &str) -> u64 {
        self.oddities.get(name).copied().unwrap_or(0)
    }
}

/// A report that many threads write.
#[derive(Debug, Default)]
pub struct Board {
    report: Mutex<Report>,
    /// Connections under way, by seed: for the account of hangs.
    live: Mutex<BTreeMap<u64, Arc<Live>>>,
}

/// How far a connection under way has come.
#[derive(Debug)]
pub struct Live {
    sends_bytes: u64,
    receives_bytes: u64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

impl Live {
    pub fn sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn received(&self, bytes: usize) {
        self.received_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Board {
    pub fn new(seed: u64) -> Self {
        Self {
            report: Mutex::new(Report {
                seed,
                ..Report::default()
            }),
            live: Mutex::default(),
        }
    }

    pub fn completed(&self) {
        lock(&self.report).completed += 1;
    }

    pub fn corrupted(&self, corruption: Corruption) {
        let mut report = lock(&self.report);
        report.corrupted += 1;
        if report.corruptions.len() < DETAILS {
            report.corruptions.push(corruption);
        }
    }

    pub fn failed(&self, failure: impl Into<String>) {
        let mut report = lock(&self.report);
        report.failed += 1;
        if report.failures.len() < DETAILS {
            report.failures.push(failure.into());
        }
    }

    pub fn odd(&self, name: &str) {
        *lock(&self.report)
            .oddities
            .entry(name.to_owned())
            .or_default() += 1;
    }

    /// A connection that plays `script` has begun.
    pub fn begin(&self, seed: u64, script: &Script) -> Arc<Live> {
        let live = Arc::new(Live {
            sends_bytes: script.sends_bytes,
            receives_bytes: script.receives_bytes,
            sent_bytes: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
        });
        lock(&self.live).insert(seed, Arc::clone(&live));
        live
    }

    /// It has ended, however.
    pub fn end(&self, seed: u64) {
        if let Some(live) = lock(&self.live).remove(&seed) {
            let mut report = lock(&self.report);
            report.sent_bytes += live.sent_bytes.load(Ordering::Relaxed);
            report.received_bytes += live.received_bytes.load(Ordering::Relaxed);
        }
    }

    /// Counts connections that are still under way as failures: the deadline has passed.
    pub fn give_up(&self) {
        let seeds: Vec<(u64, Arc<Live>)> = lock(&self.live)
            .iter()
            .map(|(seed, live)| (*seed, Arc::clone(live)))
            .collect();
        for (seed, live) in seeds {
            let Live {
                sends_bytes,
                receives_bytes,
                sent_bytes,
                received_bytes,
            } = &*live;
            let (sent, received) = (
                sent_bytes.load(Ordering::Relaxed),
                received_bytes.load(Ordering::Relaxed),
            );
            self.failed(format!(
                "hung: connection seed {seed}, {sent} of {sends_bytes} bytes sent, {received} of {receives_bytes} received"
            ));
            self.end(seed);
        }
    }

    pub fn report(&self) -> Report {
        lock(&self.report).clone()
    }
}

/// A poisoned board still holds every count made so far.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
