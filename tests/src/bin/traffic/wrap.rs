//! A one-way stream past the wrap of the sequence number, then an answer, then small messages.
//!
//! The dangerous moment is when exactly 2^32 bytes have gone one way and some of them are unread: sequence numbers
//! compare equal although bytes wait. The writer therefore stops short of it and waits for a line on standard input
//! (the test then holds the reader up), writes up to exactly 2^32 and goes on with small messages at once.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use sidecar_tests::{
    output::{say, tell},
    stream::{Checker, Direction, Stream},
};

use crate::connect;

const SEED: u64 = 0x1_0000_0000;
const WRAP_BYTES: u64 = 1 << 32;
const WRITE_BYTES: usize = 64 << 10;
/// Written after the line on standard input, up to the wrap: small enough to be accepted while nobody reads.
const LAST_BYTES: u64 = 128 << 10;
const SMALL_BYTES: usize = 100;
const SMALL_COUNT: u64 = 64;
const ANSWER_BYTES: u64 = 1 << 20;
const ROUNDS: u64 = 1000;
/// Everything that goes up.
const UP_BYTES: u64 = WRAP_BYTES + (SMALL_COUNT + ROUNDS) * SMALL_BYTES as u64;
const DOWN_BYTES: u64 = ANSWER_BYTES + ROUNDS * SMALL_BYTES as u64;

#[derive(Args)]
pub struct Read {
    #[arg(long)]
    listen: SocketAddr,
}

#[derive(Args)]
pub struct Write {
    #[arg(long)]
    to: SocketAddr,
}

#[derive(Serialize)]
struct Account {
    sent_bytes: u64,
    received_bytes: u64,
    elapsed_seconds: f64,
    corruption: Option<String>,
}

impl Read {
    pub fn run(self) -> Result<()> {
        let listener = connect::listen(self.listen, false)?;
        say(format_args!("listening {}", listener.local_addr()?))?;
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut end = End::new(stream, Direction::Down, UP_BYTES);
        let result = end.read_side();
        end.tell(result)
    }
}

impl Write {
    pub fn run(self) -> Result<()> {
        let stream = connect::dial(self.to, &connect::Dial::default())?;
        let mut end = End::new(stream, Direction::Up, DOWN_BYTES);
        let result = end.write_side();
        end.tell(result)
    }
}

/// One end of the connection: what it has sent, and a check of what it has received.
struct End {
    stream: TcpStream,
    content: Stream,
    sent_bytes: u64,
    checker: Checker,
    buffer: Vec<u8>,
    started: Instant,
}

impl End {
    fn new(stream: TcpStream, sends: Direction, expected_bytes: u64) -> Self {
        Self {
            stream,
            content: Stream::new(SEED, sends),
            sent_bytes: 0,
            checker: Checker::new(SEED, sends.opposite(), expected_bytes),
            buffer: vec![0; 256 << 10],
            started: Instant::now(),
        }
    }

    fn read_side(&mut self) -> Result<()> {
        self.receive_to(WRAP_BYTES + SMALL_COUNT * SMALL_BYTES as u64)
            .context("the long stream")?;
        self.send_to(ANSWER_BYTES, WRITE_BYTES)
            .context("the answer")?;
        for _ in 0..ROUNDS {
            self.receive_to(self.checker.received_bytes() + SMALL_BYTES as u64)
                .context("a small message")?;
            self.send_to(self.sent_bytes + SMALL_BYTES as u64, SMALL_BYTES)
                .context("a small answer")?;
        }
        self.expect_end()
    }

    fn write_side(&mut self) -> Result<()> {
        self.send_to(WRAP_BYTES - LAST_BYTES, WRITE_BYTES)
            .context("the long stream")?;
        say("before the wrap")?;
        io::stdin().read_line(&mut String::new())?;
        self.send_to(WRAP_BYTES, WRITE_BYTES)
            .context("up to the wrap")?;
        for _ in 0..SMALL_COUNT {
            self.send_to(self.sent_bytes + SMALL_BYTES as u64, SMALL_BYTES)
                .context("past the wrap")?;
        }
        say("past the wrap")?;
        self.receive_to(ANSWER_BYTES).context("the answer")?;
        for _ in 0..ROUNDS {
            self.send_to(self.sent_bytes + SMALL_BYTES as u64, SMALL_BYTES)
                .context("a small message")?;
            self.receive_to(self.checker.received_bytes() + SMALL_BYTES as u64)
                .context("a small answer")?;
        }
        self.stream.shutdown(Shutdown::Write)?;
        self.expect_end()
    }

    fn send_to(&mut self, target_bytes: u64, write_bytes: usize) -> Result<()> {
        while self.sent_bytes < target_bytes {
            let length = (target_bytes - self.sent_bytes).min(write_bytes as u64) as usize;
            self.content
                .fill(self.sent_bytes, &mut self.buffer[..length]);
            self.stream.write_all(&self.buffer[..length])?;
            self.sent_bytes += length as u64;
        }
        Ok(())
    }

    fn receive_to(&mut self, target_bytes: u64) -> Result<()> {
        while self.checker.received_bytes() < target_bytes {
            let length = (target_bytes - self.checker.received_bytes())
                .min(self.buffer.len() as u64) as usize;
            let count = self.stream.read(&mut self.buffer[..length])?;
            if count == 0 {
                bail!(
                    "ended after {} of {target_bytes} bytes",
                    self.checker.received_bytes()
                );
            }
            self.checker
                .feed(&self.buffer[..count])
                .map_err(|corruption| anyhow::anyhow!("{corruption}"))?;
        }
        Ok(())
    }

    fn expect_end(&mut self) -> Result<()> {
        self.stream
            .set_read_timeout(Some(Duration::from_secs(30)))?;
        let count = self.stream.read(&mut self.buffer)?;
        if count > 0 {
            bail!("{count} bytes after the end");
        }
        Ok(())
    }

    fn tell(&self, result: Result<()>) -> Result<()> {
        tell(&Account {
            sent_bytes: self.sent_bytes,
            received_bytes: self.checker.received_bytes(),
            elapsed_seconds: self.started.elapsed().as_secs_f64(),
            corruption: result.err().map(|error| format!("{error:#}")),
        })
    }
}
