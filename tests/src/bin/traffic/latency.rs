//! Round trips and how long they take.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use serde::Serialize;
use sidecar_tests::output::{say, tell};

use crate::{
    connect::{self, Patient},
    over_when_input_ends,
};

#[derive(Args)]
pub struct Echo {
    #[arg(long)]
    listen: SocketAddr,
    /// On sockets that do not block.
    #[arg(long)]
    nonblocking: bool,
}

#[derive(Args)]
pub struct PingPong {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long, default_value_t = 64)]
    message_bytes: usize,
    #[arg(long, default_value_t = 1000)]
    rounds: usize,
    /// End earlier, when standard input ends.
    #[arg(long)]
    until_input_ends: bool,
    /// Between two rounds.
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
    /// Let the connection idle for so long halfway.
    #[arg(long, default_value_t = 0)]
    idle_ms: u64,
    /// And between two rounds.
    #[arg(long, default_value_t = 0)]
    every_ms: u64,
    /// On a socket that does not block.
    #[arg(long)]
    nonblocking: bool,
}

#[derive(Serialize)]
struct Latency {
    rounds: usize,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

impl Echo {
    /// Serves until it is killed.
    pub fn run(self) -> Result<()> {
        let listener = connect::listen(self.listen, false)?;
        say(format_args!("listening {}", listener.local_addr()?))?;
        // What a listener that does not block accepts is known not to block either.
        listener.set_nonblocking(self.nonblocking)?;
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&listener, PollFlags::IN)], None)?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            stream.set_nonblocking(self.nonblocking)?;
            stream.set_nodelay(true)?;
            let (mut reader, mut writer) = (Patient(stream.try_clone()?), Patient(stream));
            std::thread::spawn(move || std::io::copy(&mut reader, &mut writer));
        }
    }
}

impl PingPong {
    pub fn run(self) -> Result<()> {
        let how = connect::Dial {
            nonblocking: self.nonblocking,
            ..connect::Dial::default()
        };
        let mut stream = Patient(connect::dial(self.to, &how)?);
        let over = over_when_input_ends(self.until_input_ends);
        let mut times_us = Vec::new();
        let mut answer = vec![0; self.message_bytes];
        for round in 0..self.rounds {
            if over.load(Ordering::Relaxed) {
                break;
            }
            std::thread::sleep(Duration::from_millis(self.pause_ms));
            if round == self.rounds / 2 {
                std::thread::sleep(Duration::from_millis(self.idle_ms));
            }
            std::thread::sleep(std::time::Duration::from_millis(self.every_ms));
            let message = vec![round as u8; self.message_bytes];
            let started = Instant::now();
            stream.write_all(&message)?;
            stream.read_exact(&mut answer)?;
            times_us.push(started.elapsed().as_secs_f64() * 1e6);
            ensure!(answer == message, "round {round} came back changed");
        }
        times_us.sort_by(f64::total_cmp);
        let quantile = |q: f64| {
            times_us
                .get((times_us.len() as f64 * q) as usize)
                .copied()
                .unwrap_or(f64::NAN)
        };
        let max_us = times_us.last().copied().unwrap_or(f64::NAN);
        tell(&Latency {
            rounds: times_us.len(),
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            max_us,
        })
    }
}
