//! The machine: what it is, and how much of it others took meanwhile.

use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The unit of /proc/stat; user space has always seen it at 100 Hz.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Machine {
    pub kernel: String,
    pub cpu: String,
    pub cpus: usize,
    pub memory_mib: u64,
    pub virtual_machine: bool,
}

impl Machine {
    pub fn look() -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
        let meminfo = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
        let of_cpu = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let total = meminfo
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        let flags = of_cpu("flags").unwrap_or_default();
        Ok(Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            // Where there is no such line (aarch64), the architecture has to do.
            cpu: of_cpu("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cpus: std::thread::available_parallelism()?.get(),
            memory_mib: total.unwrap_or_default() / 1024,
            virtual_machine: flags.split(' ').any(|flag| flag == "hypervisor"),
        })
    }
}

/// Seconds that all CPUs together spent, from the first line of /proc/stat.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spent {
    /// In processes: user, nice, system.
    processes: f64,
    stolen: f64,
    all: f64,
}

fn spent(stat: &str) -> Option<Spent> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let columns: Vec<f64> = line
        .split_whitespace()
        .filter_map(|column| Some(column.parse::<f64>().ok()? / TICKS_PER_SECOND))
        .collect();
    // user nice system idle iowait irq softirq steal; guest times are within user and nice.
    let [user, nice, system, .., steal] = *columns.get(..8)? else {
        return None;
    };
    Some(Spent {
        processes: user + nice + system,
        stolen: steal,
        all: columns.get(..8)?.iter().sum(),
    })
}

/// The share of all CPUs that others took between two texts of /proc/stat, if `own` seconds are the benchmark's. Interrupts
/// are nobody's: they are not counted.
pub fn others(before: &str, after: &str, own: f64) -> Option<f64> {
    let (before, after) = (spent(before)?, spent(after)?);
    let all = after.all - before.all;
    let processes = (after.processes - before.processes - own).max(0.0);
    (all > 0.0).then(|| (processes + after.stolen - before.stolen) / all)
}

/// Seconds of CPU of a control group, from its cpu.stat.
pub fn cpu_seconds(cpu_stat: &str) -> Option<f64> {
    let line = cpu_stat
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "))?;
    Some(line.trim().parse::<f64>().ok()? / 1e6)
}

/// Context switches of one thread, from its status.
pub fn context_switches(status: &str) -> u64 {
    status
        .lines()
        .filter_map(|line| line.split_once("voluntary_ctxt_switches:"))
        .filter_map(|(_, count)| count.trim().parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn others_are_what_is_neither_ours_nor_idle() {
        let before = "cpu  1000 0 500 8000 0 0 100 10 0 0\ncpu0 1 1\n";
        let after = "cpu  1300 0 600 8000 0 0 110 50 0 0\n";
        // 4.5 s in all: 4 s in processes, of which 3.5 are ours, and 0.4 stolen.
        let share = others(before, after, 3.5).unwrap();
        assert!((share - 0.9 / 4.5).abs() < 1e-9, "{share}");
        // The clock of /proc/stat is coarse: more of our own than it saw is none of others'.
        assert!((others(before, after, 4.1).unwrap() - 0.4 / 4.5).abs() < 1e-9);
        assert_eq!(others("", after, 0.0), None);
    }

    #[test]
    fn files_of_the_kernel_are_read() {
        assert_eq!(cpu_seconds("usage_usec 1500000\nuser_usec 1\n"), Some(1.5));
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t5\n";
        assert_eq!(context_switches(status), 12);
        assert!(Machine::look().unwrap().cpus > 0);
    }
}
