//! System calls of the proxies per request, counted by `perf stat` where there is one: by themselves, since counting costs time.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{
    programs::Programs,
    row::Row,
    sample::{self, Timing},
    stage::Stage,
};

const EVENT: &str = "raw_syscalls:sys_enter";
/// Enough for thousands of requests.
const COUNTED_SECONDS: f64 = 0.5;
/// The load goes on for longer than is counted.
const LOAD: Timing = Timing {
    seconds: 1.0,
    warm_up: 0.3,
};

/// Whether they can be counted on this machine: perf is installed, and the kernel has the event.
pub fn are_countable() -> bool {
    let tried = Command::new("perf")
        .args(["stat", "-e", EVENT, "true"])
        .output();
    tried.is_ok_and(|output| output.status.success())
}

/// None without proxies, where nothing was answered, and where perf did not get to count.
pub fn per_request(stage: &Stage<'_, '_>, programs: &Programs, row: &Row) -> Result<Option<f64>> {
    if stage.proxies.is_empty() {
        return Ok(None);
    }
    let mut pids = Vec::new();
    for proxy in &stage.proxies {
        pids.extend(proxy.pids()?.iter().map(u32::to_string));
    }
    let mut load = sample::start(stage, programs, row, LOAD, &[])?;
    load.line(sidecar_tests::load::MEASURING)?;
    let output = Command::new("perf")
        .args(["stat", "-x", ",", "-e", EVENT, "-p", &pids.join(",")])
        .args(["--", "sleep", &COUNTED_SECONDS.to_string()])
        .output()
        .context("starting perf")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "perf stat failed: {said}");
    let counted = count(&said);
    let report = sample::finish(load, LOAD)?;
    let requests_per_second = report.requests as f64 / report.seconds;
    let per_request = counted.map(|counted| counted / COUNTED_SECONDS / requests_per_second);
    // Zero is no count of a proxy at work.
    Ok(per_request.filter(|count| count.is_finite() && *count > 0.0))
}

/// The first column of perf's line for the event.
fn count(said: &str) -> Option<f64> {
    let line = said.lines().find(|line| line.contains(EVENT))?;
    line.split(',').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perfs_line_is_read() {
        let said = "a warning\n5138,,raw_syscalls:sys_enter,401404950,100.00,,\n";
        assert_eq!(count(said), Some(5138.0));
        assert_eq!(
            count("<not counted>,,raw_syscalls:sys_enter,0,0.00,,\n"),
            None
        );
    }
}
