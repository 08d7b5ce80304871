//! Bytes exactly as given: what no well-behaved client would send.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use sidecar_tests::{
    output::tell,
    stream::{Direction, Stream},
};

use crate::connect;

/// Sends what comes on standard input, in one write unless it is to be slow.
#[derive(Args)]
pub struct Raw {
    #[arg(long)]
    to: SocketAddr,
    /// Half-close once everything is sent.
    #[arg(long)]
    half_close: bool,
    /// Reset the connection as soon as it is sent.
    #[arg(long)]
    reset: bool,
    /// Stop reading after so long without a byte.
    #[arg(long, default_value_t = 30_000)]
    patience_ms: u64,
    /// One byte at a time, with so long a pause after each.
    #[arg(long)]
    byte_every_ms: Option<u64>,
}

#[derive(Args)]
pub struct Keyed {
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    bytes: u64,
}

/// What came back, and how it ended: `end`, `open` (nothing for a while), `reset`, `refused` or another error in words.
#[derive(Serialize)]
struct Answered {
    received: String,
    end: String,
}

impl Raw {
    pub fn run(self) -> Result<()> {
        let mut request = Vec::new();
        io::stdin().read_to_end(&mut request)?;
        let mut stream = match connect::dial(self.to, &connect::Dial::default()) {
            Ok(stream) => stream,
            Err(error) => {
                return tell(&Answered {
                    received: String::new(),
                    end: end_of(&error),
                });
            }
        };
        stream.set_read_timeout(Some(Duration::from_millis(self.patience_ms)))?;
        // The other end may refuse before it has taken everything: what it says then is what counts.
        let written = self.write(&mut stream, &request);
        if self.reset {
            connect::reset_on_close(&stream)?;
            return tell(&Answered {
                received: String::new(),
                end: "reset by us".to_owned(),
            });
        }
        if self.half_close && written.is_ok() {
            // Fails if a reset has come meanwhile, which the read tells.
            let _ = stream.shutdown(Shutdown::Write);
        }
        // A reset is told once, to the first who asks: that may have been the write.
        let reset_at_write = matches!(&written, Err(error) if connect::is_reset(error));
        let mut received = Vec::new();
        let end = match connect::read_to_end(&mut stream, &mut received) {
            Ok(()) if reset_at_write => "reset".to_owned(),
            Ok(()) => "end".to_owned(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => "open".to_owned(),
            Err(error) => end_of(&error),
        };
        tell(&Answered {
            received: String::from_utf8_lossy(&received).into_owned(),
            end,
        })
    }
}

impl Raw {
    fn write(&self, stream: &mut TcpStream, request: &[u8]) -> io::Result<()> {
        let Some(pause_ms) = self.byte_every_ms else {
            return stream.write_all(request);
        };
        for byte in request {
            stream.write_all(&[*byte])?;
            thread::sleep(Duration::from_millis(pause_ms));
        }
        Ok(())
    }
}

fn end_of(error: &io::Error) -> String {
    match error.kind() {
        _ if connect::is_reset(error) => "reset".to_owned(),
        io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        _ => error.to_string(),
    }
}

impl Keyed {
    pub fn run(self) -> Result<()> {
        let content = Stream::new(self.seed, Direction::Up);
        let (mut out, mut buffer, mut written) = (io::stdout().lock(), vec![0; 256 << 10], 0);
        while written < self.bytes {
            let length = (self.bytes - written).min(buffer.len() as u64) as usize;
            content.fill(written, &mut buffer[..length]);
            out.write_all(&buffer[..length])?;
            written += length as u64;
        }
        Ok(out.flush()?)
    }
}
