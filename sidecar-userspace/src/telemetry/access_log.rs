//! The access log: lines from the workers to a file, never making a worker wait.
//!
//! Workers append to a bounded buffer; a thread of its own writes it out. When the reader of the log does not
//! keep up, lines are dropped and counted.

use std::{
    cell::RefCell,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use prometheus::IntCounter;

use super::{line, metrics::Metrics};
use crate::{
    connection::{ConnectionRecord, RequestRecord},
    model::{self, AccessLogFormat},
};

/// Bytes that may wait to be written.
const MAX_WAITING_BYTES: usize = 4 * 1024 * 1024;

/// Lines are collected for this long, so that a busy worker does not wake the writer for each.
const COLLECT: Duration = Duration::from_millis(20);

/// Where workers leave their lines. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AccessLog(Arc<Shared>);

/// The writing thread; dropping it writes what is left and ends it.
#[derive(Debug)]
pub struct Writer {
    log: AccessLog,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot open the access log {path}: {source}")]
pub struct OpenError {
    pub path: PathBuf,
    pub source: io::Error,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    dropped: IntCounter,
}

#[derive(Debug)]
struct State {
    config: model::AccessLog,
    waiting: Vec<u8>,
    /// Open `config.path` again before the next line.
    reopen: bool,
    closed: bool,
}

impl AccessLog {
    /// Opens the log and starts its writer.
    pub fn start(
        config: &model::AccessLog,
        metrics: &Metrics,
    ) -> Result<(Self, Writer), OpenError> {
        let output = Output::open(config)?;
        let log = Self(Arc::new(Shared {
            state: Mutex::new(State {
                config: config.clone(),
                waiting: Vec::new(),
                reopen: false,
                closed: false,
            }),
            wake: Condvar::new(),
            dropped: metrics.access_log_dropped.clone(),
        }));
        let writer = log.clone();
        let thread = thread::Builder::new()
            .name("access-log".into())
            .spawn(move || writer.write_out(output));
        let thread = thread.map_err(|source| OpenError {
            path: config.path.clone(),
            source,
        })?;
        Ok((
            log.clone(),
            Writer {
                log,
                thread: Some(thread),
            },
        ))
    }

    /// One that nothing is written to.
    #[cfg(test)]
    pub(crate) fn for_tests(metrics: &Metrics) -> Self {
        let config = model::AccessLog {
            format: AccessLogFormat::None,
            path: "/dev/null".into(),
        };
        Self::start(&config, metrics).unwrap().0
    }

    pub fn connection(&self, record: &ConnectionRecord) {
        self.append(|format, line| match format {
            AccessLogFormat::Json => line::connection_json(record, line),
            AccessLogFormat::Text => line::connection_text(record, line),
            AccessLogFormat::None => {}
        });
    }

    pub fn request(&self, record: &RequestRecord) {
        self.append(|format, line| match format {
            AccessLogFormat::Json => line::request_json(record, line),
            AccessLogFormat::Text => line::request_text(record, line),
            AccessLogFormat::None => {}
        });
    }

    /// Opens the file by its name again, after it was moved away.
    pub fn reopen(&self) {
        self.lock().reopen = true;
        self.0.wake.notify_one();
    }

    /// Follows a changed configuration.
    pub fn configure(&self, config: &model::AccessLog) {
        let mut state = self.lock();
        state.reopen |= state.config.path != config.path;
        state.config = config.clone();
        self.0.wake.notify_one();
    }

    fn append(&self, write: impl FnOnce(AccessLogFormat, &mut Vec<u8>)) {
        thread_local! {
            // Lines are put together outside the lock that the workers share.
            static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let format = self.lock().config.format;
        if format == AccessLogFormat::None {
            return;
        }
        LINE.with_borrow_mut(|line| {
            line.clear();
            write(format, line);
            let mut state = self.lock();
            if state.waiting.len() + line.len() > MAX_WAITING_BYTES {
                self.0.dropped.inc();
                return;
            }
            let was_empty = state.waiting.is_empty();
            state.waiting.extend_from_slice(line);
            drop(state);
            if was_empty {
                self.0.wake.notify_one();
            }
        });
    }

    fn write_out(&self, mut output: Output) {
        let mut lines = Vec::new();
        loop {
            let mut state = self.lock();
            while state.waiting.is_empty() && !state.reopen && !state.closed {
                state = self
                    .0
                    .wake
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            lines.clear();
            std::mem::swap(&mut lines, &mut state.waiting);
            let closed = state.closed;
            let reopen = std::mem::take(&mut state.reopen).then(|| state.config.clone());
            drop(state);
            if let Err(error) = output.write(&lines) {
                tracing::warn!(%error, "cannot write the access log");
            }
            match reopen.as_ref().map(Output::open) {
                Some(Ok(opened)) => output = opened,
                Some(Err(error)) => tracing::warn!(%error, "the access log stays where it was"),
                None => {}
            }
            if closed {
                return;
            }
            thread::sleep(COLLECT);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.log.lock().closed = true;
        self.log.0.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // It panics only if writing does; there is nothing left to tell.
            let _ = thread.join();
        }
    }
}

/// Where the lines go.
#[derive(Debug)]
enum Output {
    /// The process's own descriptors: opening `/dev/stdout` anew fails where it is a socket.
    Stdout,
    Stderr,
    File(File),
    Nowhere,
}

impl Output {
    fn open(config: &model::AccessLog) -> Result<Self, OpenError> {
        let path: &Path = &config.path;
        if config.format == AccessLogFormat::None {
            return Ok(Self::Nowhere);
        }
        match path.to_str() {
            Some("/dev/stdout") => return Ok(Self::Stdout),
            Some("/dev/stderr") => return Ok(Self::Stderr),
            _ => {}
        }
        let file = File::options().append(true).create(true).open(path);
        file.map(Self::File).map_err(|source| OpenError {
            path: path.into(),
            source,
        })
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(lines)?;
                stdout.flush()
            }
            Self::Stderr => io::stderr().lock().write_all(lines),
            Self::File(file) => file.write_all(lines),
            Self::Nowhere => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Instant};

    use super::*;
    use crate::connection::{Direction, Outcome, Recorder};

    fn record(recorder: &Recorder, outcome: impl Into<Outcome>) {
        recorder
            .connection(Direction::Outbound, "192.0.2.1:4".parse().unwrap())
            .end(outcome);
    }

    fn lines(path: &Path, count: usize) -> Vec<String> {
        let start = Instant::now();
        loop {
            let text = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<_> = text.lines().map(str::to_owned).collect();
            if lines.len() >= count {
                return lines;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{lines:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_moved_file_is_left_and_its_name_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let (path, moved) = (directory.path().join("log"), directory.path().join("moved"));
        let config = model::AccessLog {
            format: AccessLogFormat::Text,
            path: path.clone(),
        };
        let metrics = Arc::new(Metrics::new().unwrap());
        let (log, writer) = AccessLog::start(&config, &metrics).unwrap();
        let recorder = Recorder::with_log(&metrics, log.clone());
        record(&recorder, Outcome::Success);
        assert!(lines(&path, 1)[0].contains(" outbound tcp 192.0.2.1:4 -> - - - ok - 0 0 "));
        fs::rename(&path, &moved).unwrap();
        record(&recorder, Outcome::Success);
        assert_eq!(lines(&moved, 2).len(), 2);
        log.reopen();
        lines(&path, 0);
        while !path.exists() {
            thread::yield_now();
        }
        record(&recorder, crate::connection::Reason::ConnectRefused);
        drop(writer);
        assert!(lines(&path, 1)[0].contains("connect_refused"));
        assert_eq!(lines(&moved, 2).len(), 2);
    }

    #[test]
    fn a_reader_that_does_not_read_costs_lines_and_no_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        // Opened for both ways: neither end blocks in open, and nobody reads.
        let reader = File::options().read(true).write(true).open(&path).unwrap();
        let config = model::AccessLog {
            format: AccessLogFormat::Json,
            path,
        };
        let metrics = Arc::new(Metrics::new().unwrap());
        let (log, writer) = AccessLog::start(&config, &metrics).unwrap();
        let recorder = Recorder::with_log(&metrics, log);
        let start = Instant::now();
        while metrics.access_log_dropped.get() == 0 {
            record(&recorder, Outcome::Success);
            assert!(start.elapsed() < Duration::from_secs(60));
        }
        // The writer is stuck in its pipe: it ends when the pipe is read.
        thread::spawn(move || io::copy(&mut io::BufReader::new(reader), &mut io::sink()));
        drop(writer);
    }
}
