//! The node's agent, and pods whose sidecar has no privilege: another user, no capability, a cgroup of its own.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::{
    Finished, Metrics, Running, Settings, Workload, World, http, programs, wait, workload::LIMIT,
};

/// Loading and verifying the programs on a busy machine.
const READY_LIMIT: Duration = Duration::from_secs(90);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Nobody's: the agent must not care.
pub const PROXY_UID: &str = "1337";

/// A running `sidecar agent` of a world. Dropping it ends it; what it attached stays.
pub struct Agent<'w> {
    world: &'w World,
    running: Option<Running>,
    starts: u32,
    admin: SocketAddr,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl<'w> Agent<'w> {
    /// Starts one and waits until sidecars can enrol.
    pub fn start(world: &'w World) -> Result<Self> {
        Self::start_with(world, &[])
    }

    /// As [`Agent::start`], with further arguments.
    pub fn start_with(world: &'w World, arguments: &[&str]) -> Result<Self> {
        let mut agent = Self {
            world,
            running: None,
            starts: 0,
            admin: (Ipv4Addr::LOCALHOST, 15098).into(),
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
            environment: Vec::new(),
        };
        agent.restart(&programs::sidecar()?)?;
        Ok(agent)
    }

    /// Starts one with this binary; the former one must be gone.
    pub fn restart(&mut self, binary: &Path) -> Result<()> {
        self.launch(binary)?;
        self.wait()
    }

    /// Variables of the agents that are started from now on; no others.
    pub fn set_environment(&mut self, variables: &[(&str, &str)]) {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        self.environment = variables.iter().map(owned).collect();
    }

    /// As [`Agent::restart`], of one that ends by itself with exit code 1: what it said.
    pub fn launch_expecting_failure(&mut self, binary: &Path) -> Result<String> {
        self.launch(binary)?;
        let running = self.running.take().context("it has ended")?;
        let finished = running.finish(READY_LIMIT)?;
        ensure!(finished.code() == 1, "the agent started: {finished:?}");
        Ok(finished.stderr)
    }

    /// As [`Agent::restart`], and waits for nothing.
    pub fn launch(&mut self, binary: &Path) -> Result<()> {
        ensure!(self.running.is_none(), "the agent runs");
        self.starts += 1;
        let mut command = self.world.command_beside("agent", binary)?;
        command
            .arg("agent")
            .arg("--socket")
            .arg(self.socket())
            .arg("--bpffs")
            .arg(self.world.bpffs())
            .args(&self.arguments)
            .args(self.pods()?)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        let name = format!("agent-{}", self.starts);
        self.running = Some(Running::start(&name, self.world.directory(), &mut command)?);
        Ok(())
    }

    /// The option that makes each workload of the world a pod, unless the test says which are.
    fn pods(&self) -> Result<Vec<String>> {
        const OPTION: &str = "--workload-cgroup";
        if self.arguments.iter().any(|word| word == OPTION) {
            return Ok(Vec::new());
        }
        Ok(vec![OPTION.to_owned(), self.world.cgroup_pattern("*")?])
    }

    /// Until sidecars can enrol.
    pub fn wait(&mut self) -> Result<()> {
        wait::until_true("the agent to be ready", READY_LIMIT, || {
            let running = self.running.as_mut().context("the agent was not started")?;
            let ended = running.ended()?;
            ensure!(ended.is_none(), "the agent ended ({ended:?}): {running}");
            Ok(self.get("/ready").is_ok_and(|answer| answer.status == 200))
        })
    }

    pub fn socket(&self) -> PathBuf {
        self.world.directory().join("agent").join("agent.sock")
    }

    pub fn pid(&self) -> Result<u32> {
        Ok(self.running.as_ref().context("it has ended")?.pid())
    }

    pub fn get(&self, path: &str) -> Result<http::Answer> {
        let admin = self.admin;
        self.world.enter(|| http::get(admin, path))?
    }

    pub fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics::parse(&self.get("/metrics")?.body_if(200)?))
    }

    /// What `/workloads` lists.
    pub fn workloads(&self) -> Result<Vec<serde_json::Value>> {
        let body = self.get("/workloads")?.body_if(200)?;
        let listed: serde_json::Value = serde_json::from_str(&body)?;
        Ok(listed["workloads"].as_array().cloned().unwrap_or_default())
    }

    /// Events of the kernel half for one pod.
    pub fn kernel_events(&self, workload: &str, event: &str) -> Result<u64> {
        let labels = [
            format!("workload=\"{workload}\""),
            format!("event=\"{event}\""),
        ];
        let labels: Vec<_> = labels.iter().map(String::as_str).collect();
        Ok(self.metrics()?.sum("sidecar_kernel_events_total", &labels) as u64)
    }

    /// Everything that this one, of all that were started, has logged.
    pub fn log(&self) -> Result<String> {
        self.running.as_ref().context("it has ended")?.stderr()
    }

    /// Ends it without giving it a chance.
    pub fn kill(&mut self) -> Result<()> {
        let running = self.running.take().context("it has ended")?;
        running.signal(Signal::KILL)?;
        running.finish(STOP_LIMIT).map(drop)
    }

    /// Asks it to end, and waits.
    pub fn stop(&mut self) -> Result<Finished> {
        self.running
            .take()
            .context("it has ended")?
            .stop(STOP_LIMIT)
    }

    /// `sidecar agent uninstall`, to its end.
    pub fn uninstall(&self) -> Result<Finished> {
        let mut command = self
            .world
            .command_beside("uninstall", &programs::sidecar()?)?;
        command.args(["agent", "uninstall", "--bpffs"]);
        command.arg(self.world.bpffs());
        Running::start("uninstall", self.world.directory(), &mut command)?.finish(LIMIT)
    }

    /// What `sidecar inspect --json` tells.
    pub fn inspect(&self) -> Result<serde_json::Value> {
        let mut command = self
            .world
            .command_beside("inspect", &programs::sidecar()?)?;
        command.args(["inspect", "--json", "--bpffs"]);
        command.arg(self.world.bpffs());
        let running = Running::start("inspect", self.world.directory(), &mut command)?;
        Ok(serde_json::from_str(
            &running.finish(LIMIT)?.success()?.stdout,
        )?)
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()?))?.count())
    }

    /// Resident memory in bytes.
    pub fn memory_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let line = line.context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if let Some(running) = self.running.take()
            && let Err(error) = running.stop(STOP_LIMIT)
        {
            eprintln!("ending the agent: {error:#}");
        }
    }
}

/// A workload with a cgroup for its application and one for its sidecar, as containers have.
pub struct Pod<'w> {
    pub workload: Workload<'w>,
    settings: Settings,
    proxies: u32,
    // Dropped first.
    proxy: Option<Running>,
}

impl<'w> Pod<'w> {
    /// Without a sidecar so far.
    pub fn new(world: &'w World, name: &str, settings: &Settings) -> Result<Self> {
        let workload = world.workload(name)?;
        for group in ["app", "proxy"] {
            fs::create_dir(workload.cgroup().join(group))?;
        }
        Ok(Self {
            workload,
            settings: settings.clone(),
            proxies: 0,
            proxy: None,
        })
    }

    /// With a sidecar that is enrolled and ready.
    pub fn enrolled(agent: &Agent<'w>, name: &str, settings: &Settings) -> Result<Self> {
        let mut pod = Self::new(agent.world, name, settings)?;
        pod.enrol(agent)?;
        Ok(pod)
    }

    /// Starts the sidecar and waits until it is ready.
    pub fn enrol(&mut self, agent: &Agent<'_>) -> Result<()> {
        self.launch(agent)?;
        self.wait()
    }

    /// Starts the sidecar, which has no privilege, and waits for nothing.
    pub fn launch(&mut self, agent: &Agent<'_>) -> Result<()> {
        self.proxy = Some(self.another(agent, "proxy", PROXY_UID)?);
        Ok(())
    }

    /// As [`Pod::launch`], in a mount namespace of its own, arranged by the shell commands `mounts`, in which the agent's socket
    /// is `socket`.
    pub fn launch_in_mounts(&mut self, mounts: &str, socket: &str) -> Result<()> {
        let mounts = format!("{mounts} && exec \"$@\"");
        let unshare = programs::packaged("unshare", "util-linux")?;
        let namespace = [
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            &mounts,
            "sh",
        ];
        let mut words = vec![unshare.to_string_lossy().into_owned()];
        words.extend(namespace.map(str::to_owned));
        let proxy = self.sidecar(&words, Path::new(socket), "proxy", PROXY_UID)?;
        self.proxy = Some(proxy);
        Ok(())
    }

    /// One more sidecar, in the cgroup `group` of the pod.
    pub fn another(&mut self, agent: &Agent<'_>, group: &str, uid: &str) -> Result<Running> {
        self.sidecar(&[], &agent.socket(), group, uid)
    }

    /// `before`: the words of a command that runs the one that follows it.
    fn sidecar(
        &mut self,
        before: &[String],
        socket: &Path,
        group: &str,
        uid: &str,
    ) -> Result<Running> {
        let workload = &self.workload;
        let name = workload.name();
        let configuration = workload.world().directory().join(format!("{name}.yaml"));
        fs::write(&configuration, self.settings.text(name))?;
        let setpriv = programs::packaged("setpriv", "util-linux")?;
        let cgroup = workload.cgroup().join(group);
        let mut command = match before {
            [] => workload.command(&cgroup, setpriv)?,
            [program, arguments @ ..] => {
                let mut command = workload.command(&cgroup, program)?;
                command.args(arguments).arg(setpriv);
                command
            }
        };
        command
            .args(["--reuid", uid, "--regid", uid, "--clear-groups"])
            .args([
                "--no-new-privs",
                "--bounding-set",
                "-all",
                "--inh-caps",
                "-all",
            ])
            .arg(programs::sidecar()?)
            .arg("proxy")
            .arg("--agent")
            .arg(socket)
            .arg("-c")
            .arg(&configuration);
        self.proxies += 1;
        workload.running(&format!("proxy-{}", self.proxies), &mut command)
    }

    /// Until the sidecar is ready.
    pub fn wait(&mut self) -> Result<()> {
        wait::until_true("the sidecar to be ready", READY_LIMIT, || {
            let proxy = self.proxy.as_mut().context("there is no sidecar")?;
            let ended = proxy.ended()?;
            ensure!(ended.is_none(), "the sidecar ended ({ended:?}): {proxy}");
            self.is_ready()
        })
    }

    pub fn is_ready(&self) -> Result<bool> {
        let answer = self.workload.get(15021, "/healthz/ready");
        Ok(answer.is_ok_and(|answer| answer.status == 200))
    }

    pub fn proxy(&self) -> Result<&Running> {
        self.proxy.as_ref().context("there is no sidecar")
    }

    /// Hands the sidecar over, to be ended by the test.
    pub fn take_proxy(&mut self) -> Result<Running> {
        self.proxy.take().context("there is no sidecar")
    }

    /// What sidecars are started with from now on.
    pub fn set_settings(&mut self, settings: &Settings) {
        self.settings = settings.clone();
    }

    /// From now on this is the sidecar.
    pub fn set_proxy(&mut self, proxy: Running) {
        self.proxy = Some(proxy);
    }

    pub fn app(&self) -> PathBuf {
        self.workload.cgroup().join("app")
    }

    pub fn v4(&self, port: u16) -> SocketAddr {
        self.workload.v4(port)
    }

    /// Starts one of the `traffic` programs as the application.
    pub fn traffic(&self, name: &str, arguments: &[&str]) -> Result<Running> {
        self.workload
            .start_in(&self.app(), name, programs::traffic()?, arguments)
    }

    /// Starts one that serves, and waits until it listens.
    pub fn serving(&self, name: &str, arguments: &[&str]) -> Result<Running> {
        self.traffic(name, arguments)?.listening()
    }

    /// Runs one to its successful end.
    pub fn run_traffic(&self, name: &str, arguments: &[&str]) -> Result<Finished> {
        self.traffic(name, arguments)?.finish(LIMIT)?.success()
    }
}
