//! One stream, as fast as it is taken. Nagle's algorithm stays on, as programs leave it that do not think of it.

use std::{
    net::{SocketAddr, TcpStream},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use rustix::{
    event::epoll::EventFlags,
    io::Errno,
    net::{SendFlags, send},
};
use sidecar_tests::output::tell;

use crate::{
    poll::Poll,
    recorder::{Recorder, Timing},
};

/// Writes between two looks at the clock.
const BATCH: u32 = 64;

#[derive(Args)]
pub struct Stream {
    /// Where to connect to
    #[arg(long)]
    to: SocketAddr,
    /// Bytes of each write
    #[arg(long)]
    write: usize,
    #[command(flatten)]
    timing: Timing,
}

impl Stream {
    pub fn run(self) -> Result<()> {
        ensure!(self.write > 0, "a write of no bytes");
        let socket = TcpStream::connect(self.to).context("connecting")?;
        socket.set_nonblocking(true)?;
        let mut poll = Poll::new()?;
        poll.add(&socket, 0, EventFlags::OUT | EventFlags::ET)?;
        let mut recorder = Recorder::new(&self.timing)?;
        let bytes = vec![b'x'; self.write];
        let mut ready = Vec::new();
        while recorder.goes_on(Instant::now())? {
            for _ in 0..BATCH {
                match send(&socket, &bytes, SendFlags::NOSIGNAL) {
                    // What was not taken is written with the next one: the bytes are all alike.
                    Ok(count) => recorder.wrote(count),
                    Err(Errno::AGAIN) => {
                        poll.wait(&mut ready)?;
                        break;
                    }
                    Err(error) => return Err(error).context("send"),
                }
            }
        }
        tell(&recorder.report())
    }
}
