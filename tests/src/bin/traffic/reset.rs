//! A reset at each stage of a connection, by either end, and what the other end sees of it.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;
use sidecar_tests::output::{say, tell};

use crate::connect;

#[derive(Args)]
pub struct Serve {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    by: By,
    #[arg(long)]
    stage: Stage,
}

#[derive(Args)]
pub struct Drive {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long)]
    by: By,
    #[arg(long)]
    stage: Stage,
}

/// Who resets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Client,
    Server,
}

/// When.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// At once.
    Connected,
    /// After the first message of the client has been read.
    Received,
    /// After message and answer.
    Answered,
    /// While the other end streams.
    Streaming,
    /// After the other end has half-closed.
    HalfClosed,
}

/// What the end that does not reset saw.
#[derive(Serialize)]
struct Saw {
    /// `reset`, `end`, or another error in words.
    end: String,
    received_bytes: u64,
}

const MESSAGE: &[u8; 1000] = &[7; 1000];
/// Nobody waits longer for the end of a connection.
const PATIENCE: Duration = Duration::from_secs(60);

impl Serve {
    pub fn run(self) -> Result<()> {
        let listener = connect::listen(self.listen, false)?;
        say(format_args!("listening {}", listener.local_addr()?))?;
        let (stream, _) = listener.accept()?;
        let played = play_server(&stream, self.stage, self.by == By::Server);
        finish(stream, self.by == By::Server, played)
    }
}

impl Drive {
    pub fn run(self) -> Result<()> {
        let stream = match connect::dial(self.to, &connect::Dial::default()) {
            // The server may reset before `connect` has returned.
            Err(error) if self.by == By::Server && connect::is_reset(&error) => {
                return tell(&Saw {
                    end: "reset".to_owned(),
                    received_bytes: 0,
                });
            }
            result => result?,
        };
        let played = play_client(&stream, self.stage, self.by == By::Client);
        finish(stream, self.by == By::Client, played)
    }
}

/// Everything before the reset; the resetting end reads and writes only what the stage asks for.
fn play_client(mut stream: &TcpStream, stage: Stage, resets: bool) -> io::Result<u64> {
    stream.set_read_timeout(Some(PATIENCE))?;
    match stage {
        Stage::Connected => Ok(0),
        Stage::Received => stream
            .write_all(MESSAGE)
            .and_then(|()| await_go(stream, resets)),
        Stage::Answered => {
            stream.write_all(MESSAGE)?;
            stream.read_exact(&mut MESSAGE.clone())?;
            Ok(MESSAGE.len() as u64)
        }
        Stage::Streaming => stream_on(stream, resets),
        Stage::HalfClosed => {
            stream.write_all(MESSAGE)?;
            if !resets {
                stream.shutdown(std::net::Shutdown::Write)?;
                return Ok(0);
            }
            stream.read_to_end(&mut Vec::new()).map(|_| 0)
        }
    }
}

fn play_server(mut stream: &TcpStream, stage: Stage, resets: bool) -> io::Result<u64> {
    stream.set_read_timeout(Some(PATIENCE))?;
    match stage {
        Stage::Connected => Ok(0),
        Stage::Received => {
            stream.read_exact(&mut MESSAGE.clone())?;
            if !resets {
                stream.write_all(&[1])?;
            }
            Ok(MESSAGE.len() as u64)
        }
        Stage::Answered => {
            stream.read_exact(&mut MESSAGE.clone())?;
            stream.write_all(MESSAGE)?;
            if resets {
                // Give the answer time to be read: a reset may throw away what is on its way.
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok(MESSAGE.len() as u64)
        }
        Stage::Streaming => stream_on(stream, resets),
        Stage::HalfClosed => {
            if !resets {
                stream.read_exact(&mut MESSAGE.clone())?;
                stream.shutdown(std::net::Shutdown::Write)?;
                return Ok(MESSAGE.len() as u64);
            }
            stream
                .read_to_end(&mut Vec::new())
                .map(|count| count as u64)
        }
    }
}

/// The client that resets after its message was received is told by one byte that it was.
fn await_go(mut stream: &TcpStream, resets: bool) -> io::Result<u64> {
    if resets {
        stream.read_exact(&mut [0])?;
    }
    Ok(0)
}

/// The end that does not reset writes without end; the other reads a little of it.
fn stream_on(mut stream: &TcpStream, resets: bool) -> io::Result<u64> {
    if resets {
        stream.read_exact(&mut vec![0; 200_000])?;
        return Ok(200_000);
    }
    loop {
        stream.write_all(MESSAGE)?;
    }
}

fn finish(mut stream: TcpStream, resets: bool, played: io::Result<u64>) -> Result<()> {
    if resets {
        played?;
        connect::reset_on_close(&stream)?;
        drop(stream);
        return say("reset");
    }
    let mut rest = Vec::new();
    let ended = match &played {
        Ok(_) => connect::read_to_end(&mut stream, &mut rest),
        Err(error) => Err(io::Error::from(error.kind())),
    };
    let end = match ended {
        Ok(()) => "end".to_owned(),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::BrokenPipe
            ) =>
        {
            "reset".to_owned()
        }
        Err(error) => error.to_string(),
    };
    tell(&Saw {
        end,
        received_bytes: played.unwrap_or(0) + rest.len() as u64,
    })
}
