//! The demo's two sidecars: one starts the server itself, one stands beside a control group that is there already.

use super::world::{Host, World};
use crate::{leftovers, process, signals, step};
use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

const METRICS_PORT: u16 = 15020;
const HEALTH_PORT: u16 = 15021;
/// Loading the kernel half and testing redirect takes a second or two.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// Longer than a sidecar drains.
const END_WITHIN: Duration = Duration::from_secs(60);
/// `run` ends with its application's exit code: 128 and SIGTERM, which is forwarded to the application.
const TERMINATED: i32 = 128 + 15;

/// A running `sidecar run`; dropped, it is ended.
pub struct Sidecar {
    child: Child,
    host: Host,
    log: PathBuf,
    /// Beside whom it stands.
    pub name: &'static str,
    /// What was started, as one would type it.
    pub command: String,
    pub ready_after: Duration,
}

impl Sidecar {
    /// The server, python's own, as the command of its sidecar.
    ///
    /// # Errors
    /// If it is not ready in time, with what it said.
    pub fn beside_server(world: &World, sidecar: &Path, port: u16) -> Result<Self> {
        let served = world.directory.join("served");
        fs::create_dir_all(&served).context("creating the served directory")?;
        fs::write(served.join("hello.txt"), super::requests::BODY)
            .context("writing the served file")?;
        // HTTP/1.1, that connections are kept; [::], that it serves IPv4 and IPv6.
        let arguments = format!(
            "-- python3 -m http.server --protocol HTTP/1.1 --bind :: --directory served {port}"
        );
        let started = Self::start(world, &world.server, sidecar, "server", &arguments)?;
        started.wait_for_application(port)
    }

    /// A sidecar for whatever runs in the client's control group.
    ///
    /// # Errors
    /// If it is not ready in time, with what it said.
    pub fn beside_client(world: &World, sidecar: &Path) -> Result<Self> {
        let arguments = format!("--cgroup {}", world.control_group.display());
        Self::start(world, &world.client, sidecar, "client", &arguments)
    }

    /// `arguments` are separated by spaces and hold none.
    fn start(
        world: &World,
        host: &Host,
        sidecar: &Path,
        name: &'static str,
        arguments: &str,
    ) -> Result<Self> {
        let config = format!("{name}.yaml");
        fs::write(world.directory.join(&config), configuration(world, name))
            .with_context(|| format!("writing {config}"))?;
        let log = world.directory.join(format!("{name}.log"));
        let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;

        // If this process is killed, so is the sidecar.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]);
        // Not `ip netns exec`, which hides the control groups and bpffs.
        command.arg("nsenter");
        command.arg(format!("--net={}", host.namespace().display()));
        command.arg(sidecar).args(["run", "-c", &config]);
        command.args(arguments.split(' '));
        process::clean(&mut command);
        command
            .current_dir(&world.directory)
            .env("PYTHONUNBUFFERED", "1")
            .env(leftovers::RUN_VARIABLE, &world.run)
            // Ctrl-C is for the demo, which then ends the sidecars in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("duplicating a file")?)
            .stderr(output);
        let started = Instant::now();
        let mut this = Self {
            child: command.spawn().context("starting setpriv")?,
            host: host.clone(),
            log,
            name,
            command: format!("sidecar run -c {config} {arguments}"),
            ready_after: Duration::ZERO,
        };
        this.wait_until_ready(started)?;
        Ok(this)
    }

    /// Adds `more` to what its configuration said at first, and waits until that is in force. Without redirect: what it
    /// carries does not come to the link.
    ///
    /// # Errors
    /// If it is not taken in time.
    pub fn reconfigure(&self, world: &World, more: &str, generation: u64) -> Result<()> {
        let path = world.directory.join(format!("{}.yaml", self.name));
        let aside = path.with_extension("new");
        let text = format!(
            "{}redirect: {{ enabled: false }}\n{more}",
            configuration(world, self.name)
        );
        fs::write(&aside, text)
            .and_then(|()| fs::rename(&aside, &path))
            .with_context(|| format!("writing {}", path.display()))?;
        let started = Instant::now();
        let in_force = format!("\nsidecar_config_generation {generation}\n");
        while !self.metrics()?.contains(&in_force) {
            self.patience(started, "its new configuration is not in force")?;
        }
        Ok(())
    }

    /// The newest line of its access log that has all of `words`. It is written a moment after the answer.
    ///
    /// # Errors
    /// If it does not come.
    pub fn record(&self, words: &[&str]) -> Result<String> {
        let started = Instant::now();
        loop {
            let log = self.output();
            let mut lines = log.lines();
            let found = lines.rfind(|line| words.iter().all(|word| line.contains(word)));
            if let Some(line) = found {
                return Ok(line.to_owned());
            }
            self.patience(started, &format!("nothing is recorded with {words:?}"))?;
        }
    }

    fn wait_until_ready(&mut self, started: Instant) -> Result<()> {
        while self.get(HEALTH_PORT, "/healthz/ready").is_err() {
            if let Some(status) = self.child.try_wait().context("waiting for a sidecar")? {
                bail!(
                    "`{}` ended ({status}); `cargo xtask run -- check` tells what is missing. {}",
                    self.command,
                    self.last_words()
                );
            }
            self.patience(started, "it is not ready")?;
        }
        self.ready_after = started.elapsed();
        Ok(())
    }

    /// The sidecar is ready before the application that it starts then.
    fn wait_for_application(self, port: u16) -> Result<Self> {
        let started = Instant::now();
        while self.host.within(move || connect(port).map(drop)).is_err() {
            self.patience(started, "its application does not listen")?;
        }
        Ok(self)
    }

    fn patience(&self, since: Instant, complaint: &str) -> Result<()> {
        if signals::interrupted().is_some() {
            bail!("starting `{}`", self.command);
        }
        if since.elapsed() > READY_WITHIN {
            bail!(
                "`{}`: {complaint} after {}. {}",
                self.command,
                step::seconds(READY_WITHIN),
                self.last_words()
            );
        }
        std::thread::sleep(Duration::from_millis(10));
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of what it and its application wrote, for a failure.
    pub fn last_words(&self) -> String {
        let output = self.output();
        let skipped = output.lines().count().saturating_sub(20);
        let last: Vec<_> = output.lines().skip(skipped).collect();
        format!(
            "the {}'s sidecar said last:\n  {}",
            self.name,
            last.join("\n  ")
        )
    }

    /// What it and its application wrote.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its metrics in Prometheus' text format.
    ///
    /// # Errors
    /// If they cannot be had.
    pub fn metrics(&self) -> Result<String> {
        self.get(METRICS_PORT, "/stats/prometheus")
            .with_context(|| format!("reading the metrics of the {}'s sidecar", self.name))
    }

    /// The body that loopback in the sidecar's namespace answers with, if it answers 200.
    fn get(&self, port: u16, path: &str) -> Result<String> {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let answer = self.host.within(move || {
            let mut stream = connect(port)?;
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
            _ => bail!(
                "{path} answered {}",
                answer.lines().next().unwrap_or("nothing")
            ),
        }
    }

    /// Ends it with SIGTERM, as an operator would.
    ///
    /// # Errors
    /// If it does not end in time, or not as it should.
    pub fn end(mut self) -> Result<()> {
        let started = Instant::now();
        self.signal(Signal::TERM);
        match self.wait(END_WITHIN)? {
            Some(status) if matches!(status.code(), Some(0 | TERMINATED)) => {
                println!(
                    "      the {}'s sidecar ended after {} ({status})",
                    self.name,
                    step::seconds(started.elapsed())
                );
                Ok(())
            }
            ended => bail!(
                "`{}` should have ended within {} of SIGTERM, with 0 or {TERMINATED}: {ended:?}. {}",
                self.command,
                step::seconds(END_WITHIN),
                self.last_words()
            ),
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            // One that is gone needs no signal.
            let _ = kill_process(pid, signal);
        }
    }

    fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.child.try_wait().context("waiting for a sidecar")?;
            if status.is_some() || Instant::now() > deadline {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        for signal in [Signal::TERM, Signal::KILL] {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            self.signal(signal);
            if matches!(self.wait(END_WITHIN), Ok(Some(_))) {
                return;
            }
        }
    }
}

/// What both say at first.
fn configuration(world: &World, name: &str) -> String {
    format!(
        "workload: {{ name: {}-{name} }}\naccessLog: {{ format: text }}\n",
        world.run
    )
}

fn connect(port: u16) -> Result<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    Ok(TcpStream::connect_timeout(
        &address,
        Duration::from_secs(30),
    )?)
}
