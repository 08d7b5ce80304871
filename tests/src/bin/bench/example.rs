//! A small run with round figures, for the tests of what is made of runs.

use sidecar_tests::load::{Distribution, QUANTILES};

use crate::{
    machine::Machine,
    run::{Conditions, FORMAT, Memory, Run, Sample},
};

/// Two rows in three modes, three rounds: redirect adds 40 µs where iptables adds 100, and reaches 0.6 of direct.
pub fn run() -> Run {
    let mut samples = Vec::new();
    for round in 1..=3 {
        for (mode, p50, requests) in [
            ("direct", 50.0, 50_000),
            ("iptables", 150.0, 15_000),
            ("redirect", 90.0, 30_000),
        ] {
            samples.push(sample("tcp-1k-closed1", mode, round, p50, 1000));
            samples.push(sample("tcp-1k-max32", mode, round, 10.0 * p50, requests));
        }
    }
    Run {
        format: FORMAT,
        taken: 1_800_000_000,
        version: "sidecar 0.1.0".to_owned(),
        machine: Machine {
            kernel: "6.18.0".to_owned(),
            cpu: "A <fast> CPU".to_owned(),
            cpus: 2,
            memory_mib: 4096,
            virtual_machine: true,
        },
        conditions: Conditions {
            rounds: 3,
            seconds: 1.0,
            warm_up_seconds: 0.5,
            workers: None,
            kept_awake: true,
            counted_system_calls: false,
            nginx: "nginx/1.22.1".to_owned(),
            peers: Vec::new(),
        },
        samples,
        memory: vec![Memory {
            mode: "redirect".to_owned(),
            side: "client".to_owned(),
            after: None,
            pss_kib: 7 * 1024,
        }],
    }
}

/// A second in which everything took about `p50` microseconds.
fn sample(row: &str, mode: &str, round: usize, p50: f64, requests: u64) -> Sample {
    // The rounds differ by one per cent; the second is the median.
    let wobble = 0.98 + 0.01 * round as f64;
    let p50 = p50 * wobble;
    Sample {
        row: row.to_owned(),
        mode: mode.to_owned(),
        round,
        seconds: 1.0,
        requests: (requests as f64 * wobble) as u64,
        bytes: 1024 * requests,
        latency: Some(Distribution {
            count: requests,
            mean: p50,
            quantiles: QUANTILES
                .into_iter()
                .map(|quantile| (quantile, p50 * (0.5 + quantile)))
                .collect(),
        }),
        cpu_proxies: if mode == "direct" { 0.0 } else { 0.5 },
        cpu_path: 1.0,
        context_switches: 2 * requests,
        ..Sample::default()
    }
}
