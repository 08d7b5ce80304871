//! A workload: programs in a network namespace and a control group, and perhaps a sidecar beside them.

use std::{
    ffi::OsStr,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use super::{
    Finished, Metrics, Running, Settings, Sidecar, World, cgroup::Cgroup, http,
    namespace::Namespace, programs,
};

/// How long a program may run unless a test says otherwise.
pub const LIMIT: Duration = Duration::from_secs(270);

/// Dropping it ends everything in it.
pub struct Workload<'world> {
    world: &'world World,
    name: String,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    // Dropped in this order: first the sidecar, then what it stood beside.
    sidecar: Option<Sidecar>,
    cgroup: Cgroup,
    namespace: Namespace,
}

impl<'world> Workload<'world> {
    pub(super) fn new(
        world: &'world World,
        name: &str,
        namespace: Namespace,
        cgroup: Cgroup,
        v4: Ipv4Addr,
        v6: Ipv6Addr,
    ) -> Self {
        Self {
            world,
            name: name.to_owned(),
            v4,
            v6,
            sidecar: None,
            cgroup,
            namespace,
        }
    }

    /// Starts a sidecar and waits until it is ready.
    pub fn with_sidecar(mut self, settings: &Settings) -> Result<Self> {
        self.start_sidecar(settings)?;
        Ok(self)
    }

    pub fn start_sidecar(&mut self, settings: &Settings) -> Result<()> {
        // One at a time in a namespace: its ports are taken until then.
        self.sidecar = None;
        self.sidecar = Some(Sidecar::start(self, settings)?);
        Ok(())
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn world(&self) -> &'world World {
        self.world
    }

    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The workload's own control group; the sidecar's is in it.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    pub fn sidecar(&self) -> Result<&Sidecar> {
        self.sidecar
            .as_ref()
            .with_context(|| format!("{} has no sidecar", self.name))
    }

    pub fn sidecar_mut(&mut self) -> Result<&mut Sidecar> {
        self.sidecar
            .as_mut()
            .with_context(|| format!("{} has no sidecar", self.name))
    }

    /// Hands the sidecar over, to be ended by the test.
    pub fn take_sidecar(&mut self) -> Result<Sidecar> {
        self.sidecar
            .take()
            .with_context(|| format!("{} has no sidecar", self.name))
    }

    pub fn v4(&self, port: u16) -> SocketAddr {
        (self.v4, port).into()
    }

    pub fn v6(&self, port: u16) -> SocketAddr {
        (self.v6, port).into()
    }

    /// The address of the workload in the family of `like`.
    pub fn address(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() {
            self.v4.into()
        } else {
            self.v6.into()
        }
    }

    /// The control group that programs are started in: the one that the sidecar steers, if there is a sidecar.
    pub fn app_cgroup(&self) -> PathBuf {
        self.sidecar.as_ref().map_or_else(
            || self.cgroup.path().to_owned(),
            |sidecar| sidecar.app_cgroup().to_owned(),
        )
    }

    /// Starts a program of the workload: in its namespace, in the steered control group.
    pub fn start(
        &self,
        name: &str,
        program: impl AsRef<OsStr>,
        arguments: &[&str],
    ) -> Result<Running> {
        let mut command = self.command(&self.app_cgroup(), program)?;
        self.running(name, command.args(arguments))
    }

    /// As [`Workload::start`], but in a given control group: another than the steered one, or one whose sidecar is gone.
    pub fn start_in(
        &self,
        cgroup: &Path,
        name: &str,
        program: impl AsRef<OsStr>,
        arguments: &[&str],
    ) -> Result<Running> {
        let mut command = self.command(cgroup, program)?;
        self.running(name, command.args(arguments))
    }

    /// Runs a program of the workload to its successful end.
    pub fn run(
        &self,
        name: &str,
        program: impl AsRef<OsStr>,
        arguments: &[&str],
    ) -> Result<Finished> {
        self.start(name, program, arguments)?
            .finish(LIMIT)?
            .success()
    }

    /// Starts one of the `traffic` programs.
    pub fn traffic(&self, name: &str, arguments: &[&str]) -> Result<Running> {
        self.start(name, programs::traffic()?, arguments)
    }

    /// Starts one of the `traffic` programs that serve, and waits until it listens.
    pub fn serving(&self, name: &str, arguments: &[&str]) -> Result<Running> {
        self.traffic(name, arguments)?.listening()
    }

    /// Runs one of the `traffic` programs to its successful end.
    pub fn run_traffic(&self, name: &str, arguments: &[&str]) -> Result<Finished> {
        self.traffic(name, arguments)?.finish(LIMIT)?.success()
    }

    /// What the sidecar counts.
    pub fn metrics(&self) -> Result<Metrics> {
        let body = self.get(15020, "/stats/prometheus")?.body_if(200)?;
        Ok(Metrics::parse(&body))
    }

    /// A plain GET to a port of the namespace's loopback, from outside the steered group.
    pub fn get(&self, port: u16, path: &str) -> Result<http::Answer> {
        self.namespace
            .enter(|| http::get((Ipv4Addr::LOCALHOST, port).into(), path))?
    }

    /// A command that enters the namespace and `cgroup` before it becomes `program`: its pid stays the same.
    pub(super) fn command(&self, cgroup: &Path, program: impl AsRef<OsStr>) -> Result<Command> {
        command(&self.namespace, cgroup, program)
    }

    pub(super) fn running(&self, name: &str, command: &mut Command) -> Result<Running> {
        Running::start(
            &format!("{}-{name}", self.name),
            self.world.directory(),
            command,
        )
    }
}

/// A command that enters `namespace` and `cgroup` before it becomes `program`: its pid stays the same.
pub(super) fn command(
    namespace: &Namespace,
    cgroup: &Path,
    program: impl AsRef<OsStr>,
) -> Result<Command> {
    // `ip netns exec` would hide the mounts below /sys.
    let mut command = Command::new(programs::packaged("nsenter", "util-linux")?);
    command
        .arg(format!("--net={}", namespace.path().display()))
        .args([
            "--",
            "/bin/sh",
            "-c",
            r#"echo $$ > "$0/cgroup.procs" && exec "$@""#,
        ])
        .arg(cgroup)
        .arg(program);
    // What a developer or a CI machine has set for itself is not meant for these.
    for name in programs::FOREIGN_VARIABLES {
        command.env_remove(name);
    }
    Ok(command)
}
