//! Integrity with non-blocking sockets: one thread, all connections, tokio's edge-triggered epoll.
//!
//! A reader is greedy, it reads until EAGAIN before it waits; or hasty, as tokio's own `read` and nginx are: it takes a
//! read that does not fill its buffer for the sign that nothing is left, and waits for the next edge.

use std::{io, net, pin::pin, sync::Arc};

use sidecar_tests::{
    report::{Board, Live},
    script::{Preamble, Script, Step},
    stream::{Checker, Stream},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    runtime::{Builder, Runtime},
    sync::watch,
    task::JoinSet,
    time::sleep,
};

use crate::{
    connect,
    integrity::{Expected, Plan},
};

/// When a reader waits for the next edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appetite {
    /// After EAGAIN.
    Greedy,
    /// After a short read.
    Hasty,
}

/// Accepts and serves what is expected.
pub fn serve(
    board: &Arc<Board>,
    listener: net::TcpListener,
    expected: Expected,
    appetite: Appetite,
) -> io::Result<()> {
    runtime()?.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let accept = || async {
            sleep(expected.accept_delay).await;
            listener.accept().await
        };
        let mut next = pin!(accept());
        let mut places = expected.connections + expected.silent;
        let (mut tasks, mut served) = (JoinSet::new(), 0);
        while served < expected.connections {
            tokio::select! {
                accepted = next.as_mut(), if places > 0 => {
                    let (stream, peer) = accepted?;
                    let board = Arc::clone(board);
                    tasks.spawn(async move {
                        let served = serve_one(&board, stream, appetite).await;
                        expected.spoke(&board, peer, served)
                    });
                    places -= 1;
                    next.set(accept());
                }
                Some(spoke) = tasks.join_next() => served += u64::from(spoke?),
            }
        }
        Ok(())
    })
}

/// Makes the connections of `plan`, `concurrency` at a time.
pub fn drive(
    board: &Arc<Board>,
    plan: &Arc<Plan>,
    concurrency: u64,
    appetite: Appetite,
) -> io::Result<()> {
    runtime()?.block_on(async {
        let mut tasks = JoinSet::new();
        for _ in 0..concurrency {
            let (board, plan) = (Arc::clone(board), Arc::clone(plan));
            tasks.spawn(async move {
                while let Some((preamble, dial)) = plan.next() {
                    if let Err(error) = drive_one(&board, plan.to, &dial, &preamble, appetite).await
                    {
                        board.failed(format!("connection seed {}: {error}", preamble.seed));
                    }
                }
            });
        }
        tasks.join_all().await;
        Ok(())
    })
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// Whether anything was said.
async fn serve_one(board: &Board, mut stream: TcpStream, appetite: Appetite) -> io::Result<bool> {
    stream.set_nodelay(true)?;
    let mut bytes = [0; Preamble::BYTES];
    if !matches!(stream.read(&mut bytes[..1]).await, Ok(1)) {
        return Ok(false);
    }
    stream.read_exact(&mut bytes[1..]).await?;
    match Preamble::decode(&bytes) {
        Ok(preamble) => {
            converse(
                board,
                stream,
                preamble.seed,
                &preamble.scripts().1,
                appetite,
            )
            .await
        }
        Err(corruption) => board.corrupted(corruption),
    }
    Ok(true)
}

async fn drive_one(
    board: &Board,
    to: net::SocketAddr,
    dial: &connect::Dial,
    preamble: &Preamble,
    appetite: Appetite,
) -> io::Result<()> {
    let stream = if dial.fast_open || dial.source_port.is_some() {
        let stream = connect::dial(to, dial)?;
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream)?
    } else {
        TcpStream::connect(to).await?
    };
    stream.set_nodelay(true)?;
    let mut stream = stream;
    stream.write_all(&preamble.encode()).await?;
    converse(
        board,
        stream,
        preamble.seed,
        &preamble.scripts().0,
        appetite,
    )
    .await;
    Ok(())
}

/// Plays `script` to its end, both directions at once.
async fn converse(
    board: &Board,
    mut stream: TcpStream,
    seed: u64,
    script: &Script,
    appetite: Appetite,
) {
    let (progress, seen) = watch::channel(0);
    let live = board.begin(seed, script);
    let (reader, writer) = stream.split();
    // Not `try_join`: the half that still works must come to its end, as half-close demands. A writer that fails
    // would leave the reader waiting for an answer, so it ends the reader; a reader that fails drops `progress`,
    // which ends the writer's waits.
    let reading = read(board, &live, reader, seed, script, progress, appetite);
    let writing = write(&live, writer, seed, script, seen);
    tokio::pin!(reading, writing);
    let result = tokio::select! {
        read = &mut reading => match read {
            Ok(()) => writing.await,
            Err(error) => Err(error),
        },
        written = &mut writing => match written {
            Ok(()) => reading.await,
            Err(error) => Err(error),
        },
    };
    board.end(seed);
    match result {
        Ok(()) => board.completed(),
        Err(error) => board.failed(format!("connection seed {seed}: {error}")),
    }
}

async fn write(
    live: &Live,
    mut stream: WriteHalf<'_>,
    seed: u64,
    script: &Script,
    mut received: watch::Receiver<u64>,
) -> io::Result<()> {
    let content = Stream::new(seed, script.direction);
    let mut buffer = Vec::new();
    let mut sent_bytes = 0;
    for step in &script.steps {
        match *step {
            Step::Write { bytes } => {
                buffer.resize(bytes, 0);
                content.fill(sent_bytes, &mut buffer);
                stream.write_all(&buffer).await?;
                sent_bytes += bytes as u64;
                live.sent(bytes);
            }
            Step::Pause(pause) => sleep(pause).await,
            Step::AwaitReceived { bytes } => {
                if received.wait_for(|count| *count >= bytes).await.is_err() {
                    // The reader tells why.
                    return Ok(());
                }
            }
        }
    }
    stream.shutdown().await
}

async fn read(
    board: &Board,
    live: &Live,
    mut stream: ReadHalf<'_>,
    seed: u64,
    script: &Script,
    progress: watch::Sender<u64>,
    appetite: Appetite,
) -> io::Result<()> {
    sleep(script.read_delay).await;
    let mut checker = Checker::new(seed, script.direction.opposite(), script.receives_bytes);
    let mut buffer = vec![0; script.read_bytes];
    loop {
        let count = match appetite {
            Appetite::Hasty => stream.read(&mut buffer).await?,
            Appetite::Greedy => read_greedily(&stream, &mut buffer).await?,
        };
        let checked = if count == 0 {
            checker.finish()
        } else {
            checker.feed(&buffer[..count])
        };
        if let Err(corruption) = checked {
            let failure = io::Error::other(format!("{corruption}"));
            board.corrupted(corruption);
            return Err(failure);
        }
        if count == 0 {
            return Ok(());
        }
        live.received(count);
        progress.send_replace(checker.received_bytes());
    }
}

/// Waits only after EAGAIN: `try_read` keeps the readiness after a short read.
async fn read_greedily(stream: &ReadHalf<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.try_read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.readable().await?,
            result => return result,
        }
    }
}
