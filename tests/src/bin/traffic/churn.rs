//! Many short connections, one question and one answer each, ended in every way there is.

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
use clap::Args;
use sidecar_tests::{output::say, report::Board};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Builder,
    task::JoinSet,
    time::interval,
};

use crate::{account, connect, over_when_input_ends, watch};

/// Question: ending (1 byte) and number (8 bytes); answer: the number's complement.
const QUESTION_BYTES: usize = 9;

/// Who ends the connection, and how. The number of the connection picks one.
const CLIENT_CLOSES: u8 = 0;
const SERVER_CLOSES: u8 = 1;
const CLIENT_RESETS: u8 = 2;
const SERVER_RESETS: u8 = 3;

#[derive(Args)]
pub struct Answer {
    #[arg(long)]
    listen: SocketAddr,
}

#[derive(Args)]
pub struct Churn {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long, default_value_t = u64::MAX)]
    connections: u64,
    /// Go on until standard input ends.
    #[arg(long)]
    until_input_ends: bool,
    /// Connections a second at most.
    #[arg(long, default_value_t = 1_000_000)]
    rate: u64,
    #[arg(long, default_value_t = 64)]
    concurrency: u64,
    #[arg(long, default_value_t = 300)]
    deadline_seconds: u64,
}

impl Answer {
    /// Serves until it is killed.
    pub fn run(self) -> Result<()> {
        let listener = connect::listen(self.listen, false)?;
        say(format_args!("listening {}", listener.local_addr()?))?;
        Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(async {
                listener.set_nonblocking(true)?;
                let listener = TcpListener::from_std(listener)?;
                loop {
                    let (stream, _) = listener.accept().await?;
                    // The asking side counts what fails.
                    tokio::spawn(answer(stream));
                }
            })
    }
}

impl Churn {
    pub fn run(self) -> Result<()> {
        let (board, started) = (Arc::new(Board::new(0)), Instant::now());
        watch(&board, Duration::from_secs(self.deadline_seconds));
        let over = over_when_input_ends(self.until_input_ends);
        let pace = Duration::from_micros(1_000_000 * self.concurrency / self.rate.max(1));
        Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(async {
                let next = Arc::new(AtomicU64::new(0));
                let mut tasks = JoinSet::new();
                for _ in 0..self.concurrency {
                    let (next, board) = (Arc::clone(&next), Arc::clone(&board));
                    let over = Arc::clone(&over);
                    let mut turn = interval(pace.max(Duration::from_micros(1)));
                    tasks.spawn(async move {
                        while !over.load(Ordering::Relaxed) {
                            if pace > Duration::from_millis(1) {
                                turn.tick().await;
                            }
                            let number = next.fetch_add(1, Ordering::Relaxed);
                            if number >= self.connections {
                                return;
                            }
                            match ask(self.to, number).await {
                                Ok(()) => board.completed(),
                                Err(error) => board.failed(format!("connection {number}: {error}")),
                            }
                        }
                    });
                }
                tasks.join_all().await;
            });
        account(&board, started)
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut question = [0; QUESTION_BYTES];
    stream.read_exact(&mut question).await?;
    let [ending, number @ ..] = question;
    stream.write_all(&number.map(|byte| !byte)).await?;
    match ending {
        SERVER_CLOSES => Ok(()),
        SERVER_RESETS => {
            // Not before the answer has been read: a reset may throw away what is on its way.
            stream.read_exact(&mut [0]).await?;
            stream.set_zero_linger()
        }
        _ => stream.read(&mut [0]).await.map(drop),
    }
}

async fn ask(to: SocketAddr, number: u64) -> io::Result<()> {
    let ending = (number % 4) as u8;
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let mut question = [0; QUESTION_BYTES];
    question[0] = ending;
    question[1..].copy_from_slice(&number.to_le_bytes());
    stream.write_all(&question).await?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).await?;
    if u64::from_le_bytes(answer) != !number {
        return Err(io::Error::other(format!(
            "got the answer to {}",
            !u64::from_le_bytes(answer)
        )));
    }
    match ending {
        CLIENT_CLOSES => Ok(()),
        CLIENT_RESETS => stream.set_zero_linger(),
        SERVER_RESETS => {
            stream.write_all(&[1]).await?;
            match stream.read(&mut [0]).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
                other => Err(io::Error::other(format!("a reset arrived as {other:?}"))),
            }
        }
        _ => match stream.read(&mut [0]).await? {
            0 => Ok(()),
            _ => Err(io::Error::other("bytes after the answer")),
        },
    }
}
