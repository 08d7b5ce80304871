//! Integrity: many connections whose every byte is known to both ends.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::{Args, ValueEnum};
use sidecar_tests::{
    random::Random,
    report::Board,
    script::{Preamble, Style},
};

use crate::{
    account, blocking, connect,
    how::How,
    nonblocking::{self, Appetite},
    say, watch,
};

#[derive(Args)]
pub struct Serve {
    #[arg(long)]
    listen: SocketAddr,
    /// End after so many.
    #[arg(long)]
    connections: u64,
    #[arg(long, default_value = "blocking")]
    mode: Mode,
    /// By which system call to read; with `blocking` only.
    #[arg(long, default_value = "plain")]
    how: How,
    /// Wait so long before each `accept`.
    #[arg(long, default_value_t = 0)]
    accept_delay_ms: u64,
    #[arg(long)]
    fast_open: bool,
    #[arg(long, default_value_t = 240)]
    deadline_seconds: u64,
}

#[derive(Args)]
pub struct Drive {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long)]
    connections: u64,
    #[arg(long, default_value_t = 64)]
    concurrency: u64,
    #[arg(long, default_value = "blocking")]
    mode: Mode,
    #[arg(long, default_value = "plain")]
    how: How,
    /// Repeats a run; drawn anew if it is not given, and reported.
    #[arg(long)]
    seed: Option<u64>,
    /// Most bytes in one direction of a connection.
    #[arg(long, default_value_t = 1 << 20)]
    limit_bytes: u64,
    /// `duplex` or `eager` where either end reads with `wait-all` or `low-water`: these would wait for bytes that the
    /// other end sends only after an answer.
    #[arg(long, default_value = "any")]
    style: StyleArgument,
    #[arg(long)]
    fast_open: bool,
    /// Local port of the first connection; each further one takes the next.
    #[arg(long)]
    source_port: Option<u16>,
    #[arg(long, default_value_t = 240)]
    deadline_seconds: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Two threads a connection, one reads, one writes.
    Blocking,
    /// One thread, epoll, each socket read until EAGAIN.
    Nonblocking,
    /// As `nonblocking`, but a short read is taken for the sign that nothing is left, as tokio and nginx do.
    Hasty,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StyleArgument {
    Any,
    Duplex,
    Turns,
    Eager,
}

impl Serve {
    pub fn run(self) -> Result<()> {
        let (board, started) = (Arc::new(Board::new(0)), Instant::now());
        let listener = connect::listen(self.listen, self.fast_open)?;
        say(format_args!("listening {}", listener.local_addr()?))?;
        watch(&board, Duration::from_secs(self.deadline_seconds));
        let accept_delay = Duration::from_millis(self.accept_delay_ms);
        match self.mode {
            Mode::Blocking => {
                blocking::serve(&board, &listener, self.connections, accept_delay, self.how)?
            }
            Mode::Nonblocking => nonblocking::serve(
                &board,
                listener,
                self.connections,
                accept_delay,
                Appetite::Greedy,
            )?,
            Mode::Hasty => nonblocking::serve(
                &board,
                listener,
                self.connections,
                accept_delay,
                Appetite::Hasty,
            )?,
        }
        account(&board, started)
    }
}

impl Drive {
    pub fn run(self) -> Result<()> {
        let seed = self.seed.unwrap_or_else(Random::fresh_seed);
        let (board, started) = (Arc::new(Board::new(seed)), Instant::now());
        watch(&board, Duration::from_secs(self.deadline_seconds));
        let plan = Arc::new(Plan {
            to: self.to,
            seed,
            connections: self.connections,
            next: AtomicU64::new(0),
            limit_bytes: self.limit_bytes.max(1),
            style: self.style.into(),
            fast_open: self.fast_open,
            source_port: self.source_port,
        });
        let concurrency = self.concurrency.clamp(1, self.connections.max(1));
        match self.mode {
            Mode::Blocking => blocking::drive(&board, &plan, concurrency, self.how),
            Mode::Nonblocking => nonblocking::drive(&board, &plan, concurrency, Appetite::Greedy)?,
            Mode::Hasty => nonblocking::drive(&board, &plan, concurrency, Appetite::Hasty)?,
        }
        account(&board, started)
    }
}

/// What the driving end is to do; its workers take one connection after the other from it.
pub struct Plan {
    pub to: SocketAddr,
    seed: u64,
    connections: u64,
    /// Number of the next connection that nobody has taken yet.
    next: AtomicU64,
    limit_bytes: u64,
    style: Style,
    fast_open: bool,
    source_port: Option<u16>,
}

impl Plan {
    /// The next connection to make, until there is none left.
    pub fn next(&self) -> Option<(Preamble, connect::Dial)> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        let preamble = Preamble {
            seed: Random::new(self.seed.wrapping_add(index)).word() >> 1,
            style: self.style,
            limit_bytes: self.limit_bytes,
        };
        let source_port = self
            .source_port
            .map(|first| first.wrapping_add(index as u16));
        (index < self.connections).then_some((
            preamble,
            connect::Dial {
                fast_open: self.fast_open,
                source_port,
                nonblocking: false,
            },
        ))
    }
}

impl From<StyleArgument> for Style {
    fn from(style: StyleArgument) -> Self {
        match style {
            StyleArgument::Any => Self::Any,
            StyleArgument::Duplex => Self::Duplex,
            StyleArgument::Turns => Self::Turns,
            StyleArgument::Eager => Self::Eager,
        }
    }
}
