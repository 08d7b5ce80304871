//! What is under way between two pods while something happens to their agent or their sidecars.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde::Deserialize;
use sidecar_tests::{
    report::Report,
    world::{Pod, Running, wait},
};

use super::SOON;

/// Connections a second, if the machine can.
const RATE: &str = "1000";

#[derive(Debug, Deserialize)]
struct Rounds {
    rounds: usize,
}

/// Connections that stay open, with a message every so often, and many short ones.
pub struct Load {
    started: Instant,
    churn: Running,
    long_lived: Vec<Running>,
    _servers: Vec<Running>,
}

impl Load {
    /// `a` calls `b`; returns when connections are under way.
    pub fn start(a: &Pod<'_>, b: &Pod<'_>) -> Result<Self> {
        let (echo, answer) = (b.v4(7000).to_string(), b.v4(7001).to_string());
        let servers = vec![
            b.serving("echo", &["echo", "--listen", &echo])?,
            b.serving("answer", &["answer", "--listen", &answer])?,
        ];
        for pod in [a, b] {
            // Enough local ports for the pace.
            let namespace = pod.workload.namespace();
            namespace.sysctl("net.ipv4.ip_local_port_range", "16000 65535")?;
            namespace.sysctl("net.ipv4.tcp_tw_reuse", "1")?;
        }
        let mut long_lived = Vec::new();
        for number in 0..4 {
            let arguments = [
                "ping-pong",
                "--to",
                &echo,
                "--rounds",
                "1000000",
                "--pause-ms",
                "20",
                "--until-input-ends",
            ];
            long_lived.push(a.traffic(&format!("long-lived-{number}"), &arguments)?);
        }
        let arguments = [
            "churn",
            "--to",
            &answer,
            "--until-input-ends",
            "--rate",
            RATE,
            "--concurrency",
            "32",
            "--deadline-seconds",
            "600",
        ];
        let churn = a.traffic("churn", &arguments)?;
        std::thread::sleep(std::time::Duration::from_secs(1));
        Ok(Self {
            started: Instant::now(),
            churn,
            long_lived,
            _servers: servers,
        })
    }

    /// Ends it: nothing may have failed.
    pub fn expect_unharmed(self) -> Result<()> {
        let report: Report = self.churn.finish(SOON)?.success()?.account()?;
        report.expect_exact(report.completed)?;
        let took = self.started.elapsed().as_secs_f64();
        let pace = report.completed as f64 / took;
        println!("{} connections, {pace:.0}/s, none failed", report.completed);
        ensure!(report.completed > 100, "that is no load: {report:?}");
        for running in self.long_lived {
            let finished: Rounds = running.finish(SOON)?.success()?.account()?;
            println!("a connection of {} round trips", finished.rounds);
            ensure!(finished.rounds > 10, "that is no load: {finished:?}");
        }
        Ok(())
    }
}

/// Waits until a line of the sidecar's log says so, for the `times`th time.
pub fn said(proxy: &Running, text: &str, times: usize) -> Result<()> {
    wait::until_true(&format!("«{text}»"), SOON, || {
        Ok(proxy.stderr()?.matches(text).count() >= times)
    })
}
