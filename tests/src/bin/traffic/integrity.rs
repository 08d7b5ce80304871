//! Integrity: many connections whose every byte is known to both ends.

use std::{
    io,
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
    output::say,
    random::Random,
    report::Board,
    script::{Preamble, Style},
};

use crate::{
    account, blocking, connect,
    how::How,
    nonblocking::{self, Appetite},
    watch,
};

#[derive(Args)]
pub struct Serve {
    #[arg(long)]
    listen: SocketAddr,
    /// End after so many.
    #[arg(long)]
    connections: u64,
    /// Take so many more on which nothing is ever said: with SYN cookies a late ACK of a connection that is over makes a new
    /// one, of which its client knows nothing.
    #[arg(long, default_value_t = 0)]
    silent: u64,
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

/// What a server waits for.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// On which something is said.
    pub connections: u64,
    /// More of them, at most, on which nothing is.
    pub silent: u64,
    /// Before each `accept`.
    pub accept_delay: Duration,
}

impl Expected {
    /// Whether a connection that has ended counts: it does unless nothing was said and that is allowed.
    pub fn spoke(self, board: &Board, peer: SocketAddr, served: io::Result<bool>) -> bool {
        match served {
            Ok(true) => return true,
            Ok(false) if self.silent > 0 => return false,
            Ok(false) => board.failed(format!("serving {peer}: nothing was said")),
            Err(error) => board.failed(format!("serving {peer}: {error}")),
        }
        true
    }
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
        let expected = Expected {
            connections: self.connections,
            silent: self.silent,
            accept_delay: Duration::from_millis(self.accept_delay_ms),
        };
        match self.mode {
            Mode::Blocking => blocking::serve(&board, listener, expected, self.how)?,
            Mode::Nonblocking => nonblocking::serve(&board, listener, expected, Appetite::Greedy)?,
            Mode::Hasty => nonblocking::serve(&board, listener, expected, Appetite::Hasty)?,
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
