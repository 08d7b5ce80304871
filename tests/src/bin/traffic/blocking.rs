//! Integrity with blocking sockets: one thread reads a connection while another writes it.

use std::{
    io::{self, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
};

use sidecar_tests::{
    report::{Board, Live},
    script::{Preamble, Script, Step},
    stream::{Checker, Stream},
};

use crate::{
    connect,
    how::{How, Reader, writable},
    integrity::{Expected, Plan},
};

/// Two threads of 64 connections want no 8 MiB each.
const STACK_BYTES: usize = 256 << 10;

/// Accepts and serves what is expected.
pub fn serve(
    board: &Arc<Board>,
    listener: TcpListener,
    expected: Expected,
    how: How,
) -> io::Result<()> {
    let (done, ended) = mpsc::channel();
    let board = Arc::clone(board);
    // Not waited for: it may stand in `accept` for one more that says nothing.
    thread::spawn(move || {
        if let Err(error) = accept(&board, &listener, expected, how, &done) {
            // Nobody listens once all were served.
            let _ = done.send(Err(error));
        }
    });
    let mut served = 0;
    while served < expected.connections {
        let ended = ended.recv();
        let spoke = ended.map_err(|_| io::Error::other("a serving thread panicked"))??;
        served += u64::from(spoke);
    }
    Ok(())
}

/// Says of each connection, when it has ended, whether anything was said on it.
fn accept(
    board: &Arc<Board>,
    listener: &TcpListener,
    expected: Expected,
    how: How,
    done: &mpsc::Sender<io::Result<bool>>,
) -> io::Result<()> {
    for _ in 0..expected.connections + expected.silent {
        thread::sleep(expected.accept_delay);
        let (stream, peer) = listener.accept()?;
        let (board, done) = (Arc::clone(board), done.clone());
        thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let served = serve_one(&board, &stream, how);
                let _ = done.send(Ok(expected.spoke(&board, peer, served)));
            })?;
    }
    Ok(())
}

/// Makes the connections of `plan`, `concurrency` at a time.
pub fn drive(board: &Arc<Board>, plan: &Arc<Plan>, concurrency: u64, how: How) {
    thread::scope(|scope| {
        for _ in 0..concurrency {
            scope.spawn(|| {
                while let Some((preamble, dial)) = plan.next() {
                    let driven = connect::dial(plan.to, &dial)
                        .and_then(|stream| drive_one(board, &stream, &preamble, how));
                    if let Err(error) = driven {
                        board.failed(format!("connection seed {}: {error}", preamble.seed));
                    }
                }
            });
        }
    });
}

/// Whether anything was said.
fn serve_one(board: &Board, stream: &TcpStream, how: How) -> io::Result<bool> {
    stream.set_nodelay(true)?;
    let mut reader = Reader::new(how, stream)?;
    let mut bytes = [0; Preamble::BYTES];
    let mut filled = 0;
    while filled < bytes.len() {
        let missing = bytes.len() - filled;
        match reader.read(stream, &mut bytes[filled..], missing as u64, board) {
            Ok(0) | Err(_) if filled == 0 => return Ok(false),
            Ok(0) => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "ended within the preamble",
                ));
            }
            read => filled += read?,
        }
    }
    match Preamble::decode(&bytes) {
        Ok(preamble) => converse(board, stream, preamble.seed, &preamble.scripts().1, reader),
        Err(corruption) => board.corrupted(corruption),
    }
    Ok(true)
}

fn drive_one(board: &Board, stream: &TcpStream, preamble: &Preamble, how: How) -> io::Result<()> {
    // Before the socket may become non-blocking, so that the preamble leaves whole.
    let mut writer = stream;
    writer.write_all(&preamble.encode())?;
    let reader = Reader::new(how, stream)?;
    converse(board, stream, preamble.seed, &preamble.scripts().0, reader);
    Ok(())
}

/// Plays `script` to its end, both directions at once.
fn converse(board: &Board, stream: &TcpStream, seed: u64, script: &Script, reader: Reader) {
    let progress = Progress::default();
    let live = board.begin(seed, script);
    let (read, written) = thread::scope(|scope| {
        let reading = thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || {
                read(board, &live, stream, seed, script, reader, &progress)
            });
        let written = write(&live, stream, seed, script, &progress);
        if written.is_err() {
            // The reader would wait for an answer to what was never sent.
            let _ = stream.shutdown(Shutdown::Both);
        }
        let read = reading.and_then(|thread| {
            thread
                .join()
                .map_err(|_| io::Error::other("a reading thread panicked"))?
        });
        (read, written)
    });
    board.end(seed);
    for (what, result) in [("reading", read), ("writing", written)] {
        if let Err(error) = result {
            return board.failed(format!("{what}, connection seed {seed}: {error}"));
        }
    }
    board.completed();
}

fn write(
    live: &Live,
    mut stream: &TcpStream,
    seed: u64,
    script: &Script,
    progress: &Progress,
) -> io::Result<()> {
    let content = Stream::new(seed, script.direction);
    let mut buffer = Vec::new();
    let mut sent_bytes = 0;
    for step in &script.steps {
        match *step {
            Step::Write { bytes } => {
                buffer.resize(bytes, 0);
                content.fill(sent_bytes, &mut buffer);
                write_all(&mut stream, &buffer)?;
                sent_bytes += bytes as u64;
                live.sent(bytes);
            }
            Step::Pause(pause) => thread::sleep(pause),
            Step::AwaitReceived { bytes } => {
                if !progress.reached(bytes) {
                    // The reader tells why.
                    return Ok(());
                }
            }
        }
    }
    stream.shutdown(Shutdown::Write)
}

/// As `write_all`, on a socket that the reader may have made non-blocking.
fn write_all(stream: &mut &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => writable(stream)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn read(
    board: &Board,
    live: &Live,
    stream: &TcpStream,
    seed: u64,
    script: &Script,
    mut reader: Reader,
    progress: &Progress,
) -> io::Result<()> {
    // However it ends, the writer must not wait any longer.
    let _end = EndOnDrop(progress);
    thread::sleep(script.read_delay);
    let mut checker = Checker::new(seed, script.direction.opposite(), script.receives_bytes);
    let mut buffer = vec![0; script.read_bytes];
    loop {
        let count = reader.read(stream, &mut buffer, checker.remaining_bytes(), board)?;
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
        progress.advance(checker.received_bytes());
    }
}

/// How far the reader of a connection has come, for the writer to wait for.
#[derive(Default)]
struct Progress {
    state: Mutex<(u64, bool)>,
    changed: Condvar,
}

struct EndOnDrop<'a>(&'a Progress);

impl Progress {
    fn advance(&self, received_bytes: u64) {
        self.lock().0 = received_bytes;
        self.changed.notify_all();
    }

    /// Waits until so many bytes have arrived; false if the reader ended before.
    fn reached(&self, bytes: u64) -> bool {
        let waited = self.changed.wait_while(self.lock(), |(received, ended)| {
            *received < bytes && !*ended
        });
        waited.unwrap_or_else(PoisonError::into_inner).0 >= bytes
    }

    fn lock(&self) -> MutexGuard<'_, (u64, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.lock().1 = true;
        self.0.changed.notify_all();
    }
}
