//! What a run shows, in plain sentences: also where redirect does not help.

use super::{
    figures::{Figure, Figures},
    row::{Measures, Row},
    run::Run,
    targets,
};

/// Within this, two figures are called equal.
const EQUAL: f64 = 0.05;

/// Machine and circumstances, in one paragraph.
pub fn conditions(run: &Run) -> String {
    let Run {
        machine,
        conditions,
        version,
        ..
    } = run;
    let kind = if machine.virtual_machine {
        "A virtual machine"
    } else {
        "A machine"
    };
    let awake = if conditions.kept_awake {
        "kept awake by one SCHED_IDLE process for each, since waking an idle CPU costs tens of microseconds and hides the rest"
    } else {
        "left to their idle states"
    };
    let workers = conditions.workers.map_or_else(
        || "as many as it chooses itself".to_owned(),
        |count| count.to_string(),
    );
    let peers = match conditions.peers.as_slice() {
        [] => String::new(),
        peers => format!(", {} with one worker", peers.join(", ")),
    };
    let noisy = run.samples.iter().filter(|sample| sample.noisy).count();
    format!(
        "{version} (workers: {workers}){peers}; {} with one worker, without a log. {kind} with {} CPUs ({}), Linux {}, the CPUs {awake}. \
         Client, both proxies and server share them: quote ratios, not times. Medians of {} interleaved rounds of {} s after {} s of \
         warm-up; {noisy} of {} samples were disturbed by others, and repeated in vain. No proxy writes an access log.",
        conditions.nginx,
        machine.cpus,
        machine.cpu,
        machine.kernel,
        conditions.rounds,
        conditions.seconds,
        conditions.warm_up_seconds,
        run.samples.len(),
    )
}

/// One sentence for each row that has something to compare, and some for all.
pub fn of(run: &Run) -> Vec<String> {
    let figures = Figures::of(run);
    let mut claims: Vec<String> = figures
        .rows()
        .into_iter()
        .filter_map(|row| against_iptables(&figures, row))
        .collect();
    claims.extend(memory(run));
    claims
}

fn against_iptables(figures: &Figures<'_>, name: &str) -> Option<String> {
    let row: Row = name.parse().ok()?;
    match row.measures() {
        Measures::Latency => {
            let ours = figures.added(name, "redirect", Figure::P50)?;
            let others = figures.added(name, "iptables", Figure::P50)?;
            let share = ours / others;
            (others > 0.0).then(|| {
                let verdict = verdict(1.0 - share, "less", "more");
                format!("{name}: two sidecars add {ours:.0} µs to the median with redirect and {others:.0} µs behind iptables, {verdict}.")
            })
        }
        measures => {
            let (figure, unit) = match measures {
                Measures::Bytes => (Figure::MegabytesPerSecond, "MB/s"),
                _ => (Figure::Rate, "requests/s"),
            };
            let ours = figures.middle(name, "redirect", figure)?;
            let others = figures.middle(name, "iptables", figure)?;
            (others > 0.0).then(|| {
                let verdict = verdict(ours / others - 1.0, "more", "less");
                format!("{name}: {ours:.0} {unit} with redirect and {others:.0} behind iptables, {verdict}.")
            })
        }
    }
}

/// `gain`: above 0, redirect is better.
fn verdict(gain: f64, better: &str, worse: &str) -> String {
    let percent = gain.abs() * 100.0;
    if gain.abs() <= EQUAL {
        "which is the same: redirect does not help here".to_owned()
    } else if gain > 0.0 {
        format!("{percent:.0} % {better}")
    } else {
        format!("{percent:.0} % {worse}: redirect does not help here, it costs")
    }
}

fn memory(run: &Run) -> Option<String> {
    let idle = targets::pss_mib(run, "redirect", |memory| memory.after.is_none())?;
    let loaded = targets::pss_mib(run, "redirect", |memory| memory.after.is_some())?;
    Some(format!(
        "One sidecar takes {idle:.1} MiB (PSS) before any traffic and {loaded:.1} MiB after a row."
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::example;

    #[test]
    fn gains_losses_and_neither_are_said_plainly() {
        let claims = of(&example::run());
        assert_eq!(
            claims[0],
            "tcp-1k-closed1: two sidecars add 40 µs to the median with redirect and 100 µs behind iptables, 60 % less."
        );
        assert!(claims[1].ends_with("100 % more."), "{}", claims[1]);
        assert!(verdict(0.01, "more", "less").contains("does not help"));
        assert!(verdict(-0.2, "more", "less").starts_with("20 % less"));
        assert!(conditions(&example::run()).contains("kept awake"));
    }
}
