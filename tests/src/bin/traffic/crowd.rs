//! Many connections at once of which one end does not read: what do those who wait for it cost, and are they served again?

use std::{
    io::{self, BufRead, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use sidecar_tests::output::say;
use sidecar_userspace::lifecycle::descriptors;

use crate::connect;

static CHUNK: [u8; 64 << 10] = [b'x'; 64 << 10];
/// Between two rounds over all connections.
const ROUND: Duration = Duration::from_millis(100);
/// So long nothing can be written until everything counts as full.
const QUIET: Duration = Duration::from_secs(2);
/// Nobody is to be forgotten for so long.
const RESUME_LIMIT: Duration = Duration::from_secs(10);

#[derive(Args)]
pub struct Serve {
    #[arg(long)]
    listen: SocketAddr,
    /// Write to each connection as much as it takes.
    #[arg(long)]
    write: bool,
}

#[derive(Args)]
pub struct Join {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// Write to each connection as much as it takes.
    #[arg(long)]
    write: bool,
}

#[derive(Serialize)]
struct Resumed {
    /// For each connection that was read empty: how long until more came.
    after_ms: Vec<f64>,
}

impl Serve {
    /// Accepts and does not read. Each line on standard input is a number: of so many connections everything is read, and
    /// what comes next is waited for. Ends with standard input.
    pub fn run(self) -> Result<()> {
        descriptors::raise_limit();
        let listener = connect::listen(self.listen, false)?;
        listener.set_nonblocking(true)?;
        say(format_args!("listening {}", listener.local_addr()?))?;
        let lines = lines();
        let mut connections = Vec::new();
        loop {
            accept(&listener, &mut connections)?;
            if self.write {
                write_all(&connections);
            }
            match lines.recv_timeout(ROUND) {
                Ok(line) => {
                    let count: usize = line.trim().parse().context("a number")?;
                    let count = count.min(connections.len());
                    let after_ms = resume_ms(connections.get(..count).unwrap_or_default())?;
                    let resumed = serde_json::to_string(&Resumed { after_ms })?;
                    say(format_args!("resumed {count} {resumed}"))?;
                    connections.drain(..count);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }
}

impl Join {
    /// Connects, and holds the connections until standard input ends. Says `full` with what was written, when no
    /// connection takes more.
    pub fn run(self) -> Result<()> {
        descriptors::raise_limit();
        let lines = lines();
        let mut connections = Vec::new();
        for number in 0..self.connections {
            let connection = connect::dial(self.to, &connect::Dial::default())
                .with_context(|| format!("connection {number}"))?;
            connection.set_nonblocking(true)?;
            connections.push(connection);
        }
        let (mut written, mut last) = (0, Instant::now());
        while self.write && last.elapsed() < QUIET {
            let more = write_all(&connections);
            if more > 0 {
                (written, last) = (written + more, Instant::now());
            }
            thread::sleep(ROUND);
        }
        say(format_args!("full {written}"))?;
        // An error: standard input has ended.
        while lines.recv().is_ok() {}
        Ok(())
    }
}

/// The lines of standard input, as they come.
fn lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let read = io::stdin().lock().lines().map_while(Result::ok);
        // An error: nobody wants them any more.
        read.take_while(|line| sender.send(line.clone()).is_ok())
            .for_each(drop);
    });
    lines
}

fn accept(listener: &TcpListener, connections: &mut Vec<TcpStream>) -> Result<()> {
    loop {
        match listener.accept() {
            Ok((connection, _)) => {
                connection.set_nonblocking(true)?;
                connections.push(connection);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// How many bytes were taken.
fn write_all(connections: &[TcpStream]) -> usize {
    let write = |mut connection: &TcpStream| {
        let mut written = 0;
        // An end by an error is the test's to notice, which counts connections.
        while let Ok(count) = connection.write(&CHUNK) {
            written += count;
        }
        written
    };
    connections.iter().map(write).sum()
}

/// Reads all that there is on each of `connections`, and measures for each how long it takes until there is more.
fn resume_ms(connections: &[TcpStream]) -> Result<Vec<f64>> {
    let mut emptied = Vec::new();
    for connection in connections {
        read_empty(connection)?;
        emptied.push(Instant::now());
    }
    let started = Instant::now();
    let mut after_ms = vec![None; connections.len()];
    while after_ms.contains(&None) {
        ensure!(
            started.elapsed() < RESUME_LIMIT,
            "nothing more came within {RESUME_LIMIT:?}"
        );
        let events = connections
            .iter()
            .map(|connection| PollFd::new(connection, PollFlags::IN));
        let mut events: Vec<_> = events.collect();
        poll(&mut events, Some(&Timespec::default()))?;
        for ((event, emptied), after_ms) in events.iter().zip(&emptied).zip(&mut after_ms) {
            if !event.revents().is_empty() {
                after_ms.get_or_insert_with(|| emptied.elapsed().as_secs_f64() * 1e3);
            }
        }
        thread::sleep(Duration::from_micros(200));
    }
    Ok(after_ms.into_iter().flatten().collect())
}

fn read_empty(mut connection: &TcpStream) -> Result<()> {
    let mut space = vec![0; 64 << 10];
    let mut read_bytes = 0;
    loop {
        match connection.read(&mut space) {
            Ok(count) => read_bytes += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(read_bytes > 0, "there was nothing to read");
    Ok(())
}
