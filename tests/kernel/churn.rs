//! 100,000 short connections, ended in every way: no entry of a map, no descriptor and no socket is left.

use std::time::Duration;

use anyhow::{Result, ensure};
use sidecar_tests::{
    leaks::{self, Held},
    report::Report,
    world::{Settings, Workload, World, wait},
};

/// Developers may have less patience: SIDECAR_CHURN_CONNECTIONS.
fn connections() -> String {
    std::env::var("SIDECAR_CHURN_CONNECTIONS").unwrap_or_else(|_| "100000".to_owned())
}

/// What a workload and its sidecar hold.
#[derive(Debug, Clone, PartialEq)]
struct Holdings {
    descriptors: usize,
    sockets: u64,
    map_entries: Vec<(String, String, usize)>,
}

impl Holdings {
    fn of(workload: &Workload<'_>) -> Result<Self> {
        let (sidecar, namespace) = (workload.sidecar()?, workload.namespace());
        Ok(Self {
            descriptors: sidecar.descriptors()?,
            sockets: leaks::sockets_in_use(
                &namespace.proc_net("sockstat")?,
                &namespace.proc_net("sockstat6")?,
            ),
            map_entries: Held::by(sidecar.pid()?, &workload.world().bpffs())?.entries()?,
        })
    }

    /// Not more than `before`, but for a few descriptors that were opened once and for all, such as pipes and logs.
    fn is_back_at(&self, before: &Self) -> bool {
        let total = |holdings: &Self| {
            holdings
                .map_entries
                .iter()
                .map(|(_, _, count)| count)
                .sum::<usize>()
        };
        self.descriptors <= before.descriptors + 4
            && self.sockets <= before.sockets
            && total(self) <= total(before)
    }
}

#[test]
fn short_connections_leave_nothing() {
    World::play(|world| {
        let pod = |name| {
            let pod = world.workload(name)?;
            // Enough local ports for the pace, and none that waits a minute for a connection long gone.
            pod.namespace()
                .sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
            pod.namespace()
                .sysctl("net.ipv4.ip_local_reserved_ports", "7000,15000-15090")?;
            pod.namespace().sysctl("net.ipv4.tcp_tw_reuse", "1")?;
            pod.with_sidecar(&Settings::default())
        };
        let (a, b) = (pod("a")?, pod("b")?);
        let to = b.v4(7000).to_string();
        let _server = b.serving("answer", &["answer", "--listen", &to])?;
        // Once before, so that what is made once is there.
        churn(&a, &to, "500")?;
        let before = settled(&a, &b)?;
        let report = churn(&a, &to, &connections())?;
        println!(
            "{} connections, {:.0}/s",
            report.completed,
            report.completed as f64 / report.elapsed_seconds
        );
        let mut after = [before[0].clone(), before[1].clone()];
        let waited = wait::until_true(
            "everything to be given back",
            Duration::from_secs(60),
            || {
                after = [Holdings::of(&a)?, Holdings::of(&b)?];
                Ok(after
                    .iter()
                    .zip(&before)
                    .all(|(after, before)| after.is_back_at(before)))
            },
        );
        println!("before {before:?}\nafter {after:?}");
        ensure!(waited.is_ok(), "before: {before:#?}\nafter: {after:#?}");
        a.sidecar()?.expect_no_panic()?;
        b.sidecar()?.expect_no_panic()
    });
}

fn churn(client: &Workload<'_>, to: &str, connections: &str) -> Result<Report> {
    let program = client.traffic(
        "churn",
        &[
            "churn",
            "--to",
            to,
            "--connections",
            connections,
            "--deadline-seconds",
            "450",
        ],
    )?;
    let report: Report = program
        .finish(Duration::from_secs(480))?
        .success()?
        .account()?;
    report.expect_exact(connections.parse()?)?;
    Ok(report)
}

/// What the two hold once it no longer changes.
fn settled(a: &Workload<'_>, b: &Workload<'_>) -> Result<[Holdings; 2]> {
    let mut last = None;
    wait::until("two equal looks", Duration::from_secs(60), || {
        std::thread::sleep(Duration::from_secs(1));
        let now = [Holdings::of(a)?, Holdings::of(b)?];
        let same = last.replace(now.clone()) == Some(now.clone());
        Ok(same.then_some(now))
    })
}
