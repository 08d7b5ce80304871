//! Keeps the CPUs awake: waking an idle one costs tens of microseconds, on a virtual machine above all, and hides the rest.

use anyhow::{Context, Result};
use sidecar_tests::world::{Running, World, cgroup::Cgroup, programs::packaged};
use std::path::Path;

/// One process for each CPU. With SCHED_IDLE it runs only where nobody else wants to.
pub struct Spinners {
    _running: Vec<Running>,
    _cgroup: Cgroup,
}

impl Spinners {
    pub fn start(world: &World, load: &Path, cpus: usize) -> Result<Self> {
        let cgroup = Cgroup::new(world.cgroup().join("spinners"))?;
        // SCHED_IDLE counts among the tasks of one group only; where groups have shares, this one shall have none. The file
        // is there where the CPU controller is.
        let idle = cgroup.path().join("cpu.idle");
        if idle.exists() {
            std::fs::write(&idle, "1").context("making a control group idle")?;
        }
        let mut running = Vec::new();
        for cpu in 0..cpus {
            let mut command = std::process::Command::new(packaged("chrt", "util-linux")?);
            command
                .args(["--idle", "0"])
                .arg(packaged("taskset", "util-linux")?)
                .args(["--cpu-list", &cpu.to_string()])
                .args([
                    "/bin/sh",
                    "-c",
                    r#"echo $$ > "$0/cgroup.procs" && exec "$@""#,
                ])
                .arg(cgroup.path())
                .arg(load)
                .arg("spin");
            running.push(Running::start(
                &format!("spin-{cpu}"),
                world.directory(),
                &mut command,
            )?);
        }
        Ok(Self {
            _running: running,
            _cgroup: cgroup,
        })
    }
}
