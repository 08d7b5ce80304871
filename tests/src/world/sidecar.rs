//! A sidecar beside a workload.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::{Finished, Running, Settings, Workload, programs, wait};

/// How long it may take to be ready: loading and verifying the programs on a busy machine.
const READY_LIMIT: Duration = Duration::from_secs(90);
/// How long it may take to end: its drain and some.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// A running `sidecar run`. Dropping it ends it, politely at first.
pub struct Sidecar {
    running: Option<Running>,
    app_cgroup: PathBuf,
    configuration: PathBuf,
}

impl Sidecar {
    /// Starts `sidecar run` in the workload's namespace and control group and waits until it is ready.
    pub(super) fn start(workload: &Workload<'_>, settings: &Settings) -> Result<Self> {
        let mut sidecar = Self::launch(workload, settings)?;
        wait::until_true("the sidecar to be ready", READY_LIMIT, || {
            let running = sidecar.running()?;
            let ended = running.ended()?;
            ensure!(
                ended.is_none(),
                "the sidecar ended ({ended:?}) before it was ready: {running}"
            );
            // Refused until it listens.
            Ok(workload
                .get(15021, "/healthz/ready")
                .is_ok_and(|answer| answer.status == 200))
        })?;
        let app = &sidecar.app_cgroup;
        ensure!(
            app.is_dir(),
            "the sidecar made no control group {}",
            app.display()
        );
        Ok(sidecar)
    }

    /// Starts `sidecar run` and waits for nothing.
    pub fn launch(workload: &Workload<'_>, settings: &Settings) -> Result<Self> {
        let configuration = workload
            .world()
            .directory()
            .join(format!("{}.yaml", workload.name()));
        fs::write(&configuration, settings.text(workload.name()))?;
        let binary = match &settings.binary {
            Some(path) => path.clone(),
            None => programs::sidecar()?,
        };
        let mut command = workload.command(workload.cgroup(), binary)?;
        command
            .arg("run")
            .arg("-c")
            .arg(&configuration)
            .arg("--bpffs")
            .arg(workload.world().bpffs());
        let app_cgroup = match &settings.cgroup {
            Some(name) => {
                let path = workload.cgroup().join(name);
                fs::create_dir_all(&path)?;
                command.arg("--cgroup").arg(&path);
                path
            }
            None => workload
                .cgroup()
                .join(format!("sidecar-{}", workload.name()))
                .join("app"),
        };
        command.envs(settings.environment.iter().cloned());
        if !settings.command.is_empty() {
            command.arg("--").args(&settings.command);
        }
        let running = workload.running("sidecar", &mut command)?;
        Ok(Self {
            running: Some(running),
            app_cgroup,
            configuration,
        })
    }

    pub fn app_cgroup(&self) -> &Path {
        &self.app_cgroup
    }

    pub fn configuration(&self) -> &Path {
        &self.configuration
    }

    pub fn pid(&self) -> Result<u32> {
        Ok(self.shared()?.pid())
    }

    /// Everything that it has logged.
    pub fn log(&self) -> Result<String> {
        let running = self.shared()?;
        Ok(running.stdout()? + &running.stderr()?)
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.shared()?.signal(signal)
    }

    /// Asks it to end, and waits.
    pub fn stop(mut self) -> Result<Finished> {
        self.running
            .take()
            .context("it has ended")?
            .stop(STOP_LIMIT)
    }

    /// Waits until it ends by itself.
    pub fn finish(mut self, limit: Duration) -> Result<Finished> {
        self.running.take().context("it has ended")?.finish(limit)
    }

    /// Kills it: it has no chance to clean up.
    pub fn kill(mut self) -> Result<()> {
        let running = self.running.take().context("it has ended")?;
        running.signal(Signal::KILL)?;
        running.finish(STOP_LIMIT).map(drop)
    }

    /// The log must not tell of a panic.
    pub fn expect_no_panic(&self) -> Result<()> {
        let log = self.log()?;
        let panic = log.lines().find(|line| line.contains("panicked"));
        ensure!(panic.is_none(), "the sidecar panicked: {panic:?}");
        Ok(())
    }

    /// Forgets the most that resident memory ever was: what starting needed is not what the traffic needs.
    pub fn forget_peak_memory(&self) -> Result<()> {
        // See proc(5): 5 resets VmHWM.
        Ok(fs::write(format!("/proc/{}/clear_refs", self.pid()?), "5")?)
    }

    /// Resident memory now, and the most it ever was, in bytes.
    pub fn memory_bytes(&self) -> Result<(u64, u64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let field = |name: &str| -> Result<u64> {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .context("no such field")?;
            Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
        };
        Ok((field("VmRSS:")?, field("VmHWM:")?))
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()?))?.count())
    }

    pub fn running(&mut self) -> Result<&mut Running> {
        self.running.as_mut().context("it has ended")
    }

    fn shared(&self) -> Result<&Running> {
        self.running.as_ref().context("it has ended")
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            // If it does not end, its control group is killed with the world.
            if let Err(error) = running.stop(STOP_LIMIT) {
                eprintln!("ending a sidecar: {error:#}");
            }
        }
    }
}
