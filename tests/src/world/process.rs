//! Programs under way: their output is kept in files, and they end with whoever started them.

use std::{
    fmt,
    fs::{self, File},
    io::Write,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;

use super::wait;

/// How long a program may take to say that it is ready.
const READY_LIMIT: Duration = Duration::from_secs(90);

/// A program under way. Dropping it kills it.
pub struct Running {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// A program that has ended.
#[derive(Debug, Clone)]
pub struct Finished {
    pub name: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Running {
    /// Starts `command`; its output goes to `<logs>/<name>.out` and `.err`, its input comes from [`Running::write`].
    pub fn start(name: &str, logs: &Path, command: &mut Command) -> Result<Self> {
        let (stdout, stderr) = (
            logs.join(format!("{name}.out")),
            logs.join(format!("{name}.err")),
        );
        let child = command
            .stdin(Stdio::piped())
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?)
            .spawn()
            .with_context(|| format!("starting {name}: {command:?}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            stdout,
            stderr,
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("sending {signal:?} to {}", self.name))
    }

    /// Writes to the program's standard input.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self
            .child
            .stdin
            .as_mut()
            .with_context(|| format!("the input of {} is closed", self.name))?;
        stdin
            .write_all(bytes)
            .with_context(|| format!("writing to {}", self.name))
    }

    /// Ends the program's standard input.
    pub fn close_input(&mut self) {
        self.child.stdin = None;
    }

    pub fn stdout(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.stdout)?).into_owned())
    }

    pub fn stderr(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.stderr)?).into_owned())
    }

    /// The exit status if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for a whole line of standard output that starts with `start`.
    pub fn line(&mut self, start: &str) -> Result<String> {
        self.line_within(start, READY_LIMIT)
    }

    /// Waits until it says that it listens, as those of the `traffic` programs do that serve.
    pub fn listening(mut self) -> Result<Self> {
        self.line("listening ")?;
        Ok(self)
    }

    pub fn line_within(&mut self, start: &str, limit: Duration) -> Result<String> {
        let what = format!("a line «{start}…» of {}", self.name);
        wait::until(&what, limit, || {
            let ended = self.ended()?;
            let stdout = self.stdout()?;
            let line = stdout
                .split_inclusive('\n')
                .find(|line| line.starts_with(start) && line.ends_with('\n'));
            if line.is_none() {
                ensure!(
                    ended.is_none(),
                    "{} ended ({ended:?}) before it said «{start}…»: {self}",
                    self.name
                );
            }
            Ok(line.map(|line| line.trim_end().to_owned()))
        })
    }

    /// Closes the program's input and waits for its end.
    pub fn finish(mut self, limit: Duration) -> Result<Finished> {
        self.close_input();
        let what = format!("the end of {}", self.name);
        let status =
            wait::until(&what, limit, || self.ended()).with_context(|| format!("{self}"))?;
        Ok(Finished {
            name: self.name.clone(),
            status,
            stdout: self.stdout()?,
            stderr: self.stderr()?,
        })
    }

    /// Asks the program to end, and waits.
    pub fn stop(self, limit: Duration) -> Result<Finished> {
        self.signal(Signal::TERM)?;
        self.finish(limit)
    }
}

impl Finished {
    /// Itself if it succeeded, else an error with everything it said.
    pub fn success(self) -> Result<Self> {
        ensure!(
            self.status.success(),
            "{} failed ({}):\n{}\n{}",
            self.name,
            self.status,
            self.stdout,
            self.stderr
        );
        Ok(self)
    }

    /// The last line of standard output as JSON.
    pub fn account<T: DeserializeOwned>(&self) -> Result<T> {
        let line = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| {
            format!(
                "{} ({}) told no account: {}\n{}",
                self.name, self.status, self.stdout, self.stderr
            )
        })
    }

    /// The exit code, or 128 and the signal as a shell says it.
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Failing means that it has just ended.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What it has said so far.
impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read = |path| {
            fs::read(path)
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .unwrap_or_default()
        };
        write!(
            f,
            "--- {} said:\n{}{}",
            self.name,
            read(&self.stdout),
            read(&self.stderr)
        )
    }
}
