//! Nobody reads: how many bytes can be written before the writer is held back, and is anything lost by it?

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use sidecar_tests::{
    output::{say, tell},
    stream::{Checker, Direction, Stream},
};

use crate::{connect, how::writable_within};

/// Both ends write and expect this stream.
const SEED: u64 = 0xf100d;

#[derive(Args)]
pub struct Hoard {
    #[arg(long)]
    listen: SocketAddr,
}

#[derive(Args)]
pub struct Flood {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Size of one write.
    #[arg(long, default_value_t = 4096)]
    write_bytes: usize,
    /// Give up once so many bytes were accepted.
    #[arg(long, default_value_t = u64::MAX)]
    stop_bytes: u64,
}

/// What the hoarder found when it read at last.
#[derive(Serialize)]
struct Found {
    received_bytes: u64,
    corruption: Option<String>,
}

/// What the flooder could write.
#[derive(Serialize)]
struct Accepted {
    accepted_bytes: u64,
    /// Bytes accepted in the second half of the time: 0 once everything is full.
    late_bytes: u64,
    writes_refused: u64,
    error: Option<String>,
}

impl Hoard {
    pub fn run(self) -> Result<()> {
        let listener = connect::listen(self.listen, false)?;
        say(format_args!("listening {}", listener.local_addr()?))?;
        let (mut stream, _) = listener.accept()?;
        say("accepted")?;
        io::stdin().read_line(&mut String::new())?;
        let mut checker = Checker::new(SEED, Direction::Up, u64::MAX);
        let mut buffer = vec![0; 256 << 10];
        let corruption = loop {
            match stream.read(&mut buffer) {
                Ok(0) => break None,
                Ok(count) => {
                    if let Err(corruption) = checker.feed(&buffer[..count]) {
                        break Some(corruption.to_string());
                    }
                }
                Err(error) => break Some(error.to_string()),
            }
        };
        tell(&Found {
            received_bytes: checker.received_bytes(),
            corruption,
        })
    }
}

impl Flood {
    pub fn run(self) -> Result<()> {
        let mut stream = connect::dial(self.to, &connect::Dial::default()).context("connecting")?;
        stream.set_nonblocking(true)?;
        let content = Stream::new(SEED, Direction::Up);
        let mut buffer = vec![0; self.write_bytes];
        let (started, limit) = (Instant::now(), Duration::from_secs(self.seconds));
        let mut account = Accepted {
            accepted_bytes: 0,
            late_bytes: 0,
            writes_refused: 0,
            error: None,
        };
        while started.elapsed() < limit && account.accepted_bytes < self.stop_bytes {
            content.fill(account.accepted_bytes, &mut buffer);
            match stream.write(&buffer) {
                Ok(count) => {
                    account.accepted_bytes += count as u64;
                    if started.elapsed() > limit / 2 {
                        account.late_bytes += count as u64;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    account.writes_refused += 1;
                    writable_within(&stream, Duration::from_millis(100))?;
                }
                Err(error) => {
                    account.error = Some(error.to_string());
                    break;
                }
            }
        }
        tell(&account)?;
        // What was accepted must still arrive, so the end waits for the reader.
        stream.set_nonblocking(false)?;
        stream
            .shutdown(Shutdown::Write)
            .and_then(|()| stream.read(&mut [0]).map(drop))
            .ok();
        Ok(())
    }
}
