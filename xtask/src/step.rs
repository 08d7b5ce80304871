//! A step that may take long: it says what it is doing and for how long, and where it fails, what was last said and what to do.

use crate::{paths, process, signals};
use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    collections::VecDeque,
    fs::File,
    io::{BufRead as _, BufReader, IsTerminal as _, PipeReader, Write as _},
    process::{Child, Command, ExitStatus},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

/// Quicker steps than this are not worth a line.
const WORTH_SAYING: Duration = Duration::from_secs(1);
/// How often a long step says that it is still at it, where there is no terminal to animate.
const REMINDER: Duration = Duration::from_secs(30);
/// How much of a failed step's output is shown.
const SHOWN_LINES: usize = 40;

/// Runs `command` with its output kept in a log file, and shows `title` with the time it takes.
///
/// # Errors
/// If it cannot be started, fails, or a signal asks xtask to end; the error carries the last lines of output and `advice`.
pub fn run(title: &str, advice: &str, command: &mut Command) -> Result<()> {
    let progress = Progress::begin(title);
    let (mut child, output) =
        process::followed(command).with_context(|| format!("{title} cannot begin. {advice}"))?;
    let lines = read_lines(output);
    let mut log = Log::create(title)?;
    let status = follow(&mut child, &lines, &progress, &mut log)?;
    if status.success() {
        progress.done();
        return Ok(());
    }
    progress.failed();
    if signals::interrupted().is_some() {
        bail!("{title}");
    }
    bail!(
        "{title} failed ({status})\n\n{}\n\ncommand: {}\nfull output: {}\n{advice}",
        log.last_lines(),
        process::shown(command),
        log.path.display(),
    );
}

/// Announces a step whose own output is shown as it comes, and says afterwards how long it took.
///
/// # Errors
/// Those of `body`.
pub fn announced<T>(title: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    eprintln!("── {title}");
    let result = body();
    let verdict = if result.is_ok() { "done" } else { "FAILED" };
    eprintln!("── {title}: {verdict}, {}", seconds(started.elapsed()));
    result
}

/// `1.2 s`, `34 s`, `2 min 05 s`.
pub fn seconds(elapsed: Duration) -> String {
    match elapsed.as_secs() {
        0..10 => format!("{:.1} s", elapsed.as_secs_f64()),
        whole @ 10..120 => format!("{whole} s"),
        whole => format!("{} min {:02} s", whole / 60, whole % 60),
    }
}

fn follow(
    child: &mut Child,
    lines: &Receiver<String>,
    progress: &Progress,
    log: &mut Log,
) -> Result<ExitStatus> {
    let mut asked_to_end = false;
    loop {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => {
                progress.detail(&line);
                log.add(line)?;
            }
            Err(RecvTimeoutError::Timeout) => progress.remind(),
            // Some commands close their output long before they end.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(Duration::from_millis(20)),
        }
        if let Some(status) = child.try_wait().context("waiting for a command")? {
            // What it left in the pipe. A daemon that inherited the pipe must not hold us up, hence no wait for its end.
            while let Ok(line) = lines.recv_timeout(Duration::from_millis(50)) {
                log.add(line)?;
            }
            return Ok(status);
        }
        // A terminal's Ctrl-C reaches the command by itself; a signal sent to xtask alone does not.
        if signals::interrupted().is_some() && !asked_to_end {
            asked_to_end = true;
            if let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
                // It may have ended in this instant, which is as good.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
    }
}

fn read_lines(output: PipeReader) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut bytes = Vec::new();
        while reader
            .read_until(b'\n', &mut bytes)
            .is_ok_and(|count| count > 0)
        {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            bytes.clear();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// What a step said: all of it in a file, the end of it in memory.
struct Log {
    path: std::path::PathBuf,
    file: File,
    last: VecDeque<String>,
}

impl Log {
    fn create(title: &str) -> Result<Self> {
        let name: String = title
            .chars()
            .map(|letter| {
                if letter.is_ascii_alphanumeric() {
                    letter
                } else {
                    '-'
                }
            })
            .collect();
        let path = paths::logs().join(format!("{name}.log"));
        std::fs::create_dir_all(paths::logs()).context("creating the directory of logs")?;
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self {
            path,
            file,
            last: VecDeque::new(),
        })
    }

    fn add(&mut self, line: String) -> Result<()> {
        writeln!(self.file, "{line}")
            .with_context(|| format!("writing {}", self.path.display()))?;
        if self.last.len() == SHOWN_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line);
        Ok(())
    }

    fn last_lines(&self) -> String {
        let lines: Vec<_> = self.last.iter().map(|line| format!("    {line}")).collect();
        lines.join("\n")
    }
}

/// A spinner where there is a terminal, else plain lines.
struct Progress {
    title: String,
    started: Instant,
    spinner: Option<ProgressBar>,
    /// How many plain lines were printed. Only for steps without a spinner.
    said: std::cell::Cell<u32>,
}

impl Progress {
    fn begin(title: &str) -> Self {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template("{spinner} {prefix} ({elapsed}) {wide_msg:.dim}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let spinner = ProgressBar::new_spinner()
                .with_style(style)
                .with_prefix(title.to_owned());
            spinner.enable_steady_tick(Duration::from_millis(120));
            spinner
        });
        Self {
            title: title.to_owned(),
            started: Instant::now(),
            spinner,
            said: std::cell::Cell::new(0),
        }
    }

    fn detail(&self, line: &str) {
        match &self.spinner {
            Some(spinner) => spinner.set_message(line.trim().to_owned()),
            None => self.remind(),
        }
    }

    /// Without a terminal: a first line after a second, then one every half minute.
    fn remind(&self) {
        if self.spinner.is_some() {
            return;
        }
        let elapsed = self.started.elapsed();
        match self.said.get() {
            0 if elapsed >= WORTH_SAYING => eprintln!("   {} …", self.title),
            said if said > 0 && elapsed >= REMINDER * said => {
                eprintln!("   {} … still at it after {}", self.title, seconds(elapsed));
            }
            _ => return,
        }
        self.said.set(self.said.get() + 1);
    }

    fn done(self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        if self.started.elapsed() >= WORTH_SAYING {
            eprintln!(" ✓ {} ({})", self.title, seconds(self.started.elapsed()));
        }
    }

    fn failed(self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        eprintln!(" ✗ {} ({})", self.title, seconds(self.started.elapsed()));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn a_failed_step_shows_its_last_lines_and_the_advice() {
        let mut command = Command::new("sh");
        command.args(["-c", "seq 1 100; echo broken >&2; exit 3"]);
        let error = run("a step that fails", "Mend it.", &mut command)
            .unwrap_err()
            .to_string();
        assert!(error.contains("    broken"), "{error}");
        assert!(error.contains("    100\n"), "{error}");
        assert!(!error.contains("    10\n"), "only the last lines: {error}");
        assert!(
            error.contains("exit status: 3") && error.ends_with("Mend it."),
            "{error}"
        );
    }

    #[test]
    fn a_daemon_that_keeps_the_pipe_does_not_hold_a_step_up() {
        let started = Instant::now();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 20 & echo left behind"]);
        run("a step that leaves a daemon", "", &mut command).unwrap();
        assert!(started.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn times_read_as_people_say_them() {
        assert_eq!(seconds(Duration::from_millis(1234)), "1.2 s");
        assert_eq!(seconds(Duration::from_secs(68)), "68 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 05 s");
    }
}
