//! What a run of the benchmark found: what `--json` writes and `--baseline` reads.

use serde::{Deserialize, Serialize};
use sidecar_tests::load::Distribution;

use super::machine::Machine;

/// Changes when a file of before could be misread.
pub const FORMAT: u32 = 1;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    pub format: u32,
    /// Seconds since 1970.
    pub taken: u64,
    /// Of the sidecar.
    pub version: String,
    pub machine: Machine,
    pub conditions: Conditions,
    pub samples: Vec<Sample>,
    pub memory: Vec<Memory>,
}

/// How it was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Conditions {
    pub rounds: usize,
    pub seconds: f64,
    pub warm_up_seconds: f64,
    /// Threads of the sidecar; none: its own choice.
    pub workers: Option<u32>,
    /// Whether spinners kept the CPUs awake.
    pub kept_awake: bool,
    /// Whether system calls were counted.
    pub counted_system_calls: bool,
    /// Versions of what took part.
    pub nginx: String,
    pub peers: Vec<String>,
}

/// One row in one mode in one round.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Sample {
    pub row: String,
    pub mode: String,
    pub round: usize,
    /// How often it was repeated because of noise.
    pub repeated: u32,
    pub seconds: f64,
    /// Of a stream: the writes.
    pub requests: u64,
    pub errors: u64,
    pub first_error: Option<String>,
    pub bytes: u64,
    /// Microseconds.
    pub latency: Option<Distribution>,
    /// Microseconds until a connection stands.
    pub connect: Option<Distribution>,
    /// Seconds of CPU that both proxies used.
    pub cpu_proxies: f64,
    /// Seconds of CPU that everything between and including client and server used.
    pub cpu_path: f64,
    /// Of both proxies.
    pub context_switches: u64,
    /// In the mode `redirect`: the share of the bytes of all hops that passed by TCP, the warm-up included.
    #[serde(default)]
    pub redirected: Option<f64>,
    /// Of both proxies, per request; only where they were counted, in the first round.
    #[serde(default)]
    pub system_calls: Option<f64>,
    /// Share of all CPUs that others took: the hypervisor, and what is not of this benchmark.
    pub others: f64,
    /// Others took more than is tolerable, also when it was repeated.
    pub noisy: bool,
}

/// Memory of one proxy, in KiB of its proportional set.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Memory {
    pub mode: String,
    /// Beside whom it stands.
    pub side: String,
    /// After which row; none: before any traffic.
    pub after: Option<String>,
    pub pss_kib: u64,
}
