//! `traffic`: the programs that run inside workloads and know nothing of a sidecar.
//!
//! Each sub-command is one program. A server prints `listening ADDRESS` once it can be reached; every program ends
//! with one line of JSON on standard output and exits 0 if it could do its part, whatever it found out.

use std::{
    io,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::{Parser, Subcommand};
use sidecar_tests::{output, report::Board};

mod blocking;
mod churn;
mod connect;
mod crowd;
mod datagram;
mod flood;
mod how;
mod integrity;
mod late;
mod latency;
mod names;
mod nonblocking;
mod raw;
mod relay;
mod reset;
mod wrap;

#[derive(Parser)]
#[command(about = "Programs that send and check traffic")]
struct Arguments {
    #[command(subcommand)]
    program: Program,
}

#[derive(Subcommand)]
enum Program {
    /// Integrity, the server's end.
    Serve(integrity::Serve),
    /// Integrity, the client's end.
    Drive(integrity::Drive),
    /// Accept and do not read; once a line comes on standard input, read everything and check it.
    Hoard(flood::Hoard),
    /// Write without end to somebody who does not read.
    Flood(flood::Flood),
    /// Accept many connections, do not read, and perhaps write; read some of them when a line comes.
    CrowdServe(crowd::Serve),
    /// Open many connections, do not read, and perhaps write.
    CrowdJoin(crowd::Join),
    /// More than 4 GiB one way, the reader's end.
    WrapRead(wrap::Read),
    /// More than 4 GiB one way, the writer's end.
    WrapWrite(wrap::Write),
    /// Send back what comes.
    Echo(latency::Echo),
    /// Round trips against `echo`, and their latency.
    PingPong(latency::PingPong),
    /// Answer one request per connection.
    Answer(churn::Answer),
    /// Many short connections against `answer`.
    Churn(churn::Churn),
    /// Say whom each accepted connection is from and where it wanted to go.
    Names(names::Names),
    /// Connect and say what the two ends are called.
    Call(names::Call),
    /// Speak first, then send back what comes.
    Banner(names::Banner),
    /// Answer long after the question was half-closed.
    LateServe(late::Serve),
    /// Ask `late-serve` something.
    LateAsk(late::Ask),
    /// Reset connections, or see them reset; the server's end.
    ResetServe(reset::Serve),
    /// Reset connections, or see them reset; the client's end.
    ResetDrive(reset::Drive),
    /// Send given bytes and show what comes back.
    Raw(raw::Raw),
    /// Write a keyed stream to standard output.
    Keyed(raw::Keyed),
    /// Send one datagram and say what came of it.
    Datagram(datagram::Datagram),
    /// A relay that can be told to lose, repeat, reorder, cut or change bytes.
    Relay(relay::Relay),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().program {
        Program::Serve(program) => program.run(),
        Program::Drive(program) => program.run(),
        Program::Hoard(program) => program.run(),
        Program::Flood(program) => program.run(),
        Program::CrowdServe(program) => program.run(),
        Program::CrowdJoin(program) => program.run(),
        Program::WrapRead(program) => program.run(),
        Program::WrapWrite(program) => program.run(),
        Program::Echo(program) => program.run(),
        Program::PingPong(program) => program.run(),
        Program::Answer(program) => program.run(),
        Program::Churn(program) => program.run(),
        Program::Names(program) => program.run(),
        Program::Call(program) => program.run(),
        Program::Banner(program) => program.run(),
        Program::LateServe(program) => program.run(),
        Program::LateAsk(program) => program.run(),
        Program::ResetServe(program) => program.run(),
        Program::ResetDrive(program) => program.run(),
        Program::Raw(program) => program.run(),
        Program::Keyed(program) => program.run(),
        Program::Datagram(program) => program.run(),
        Program::Relay(program) => program.run(),
    };
    output::end("traffic", result)
}

/// A flag that is set when standard input ends, if that is wanted.
fn over_when_input_ends(wanted: bool) -> Arc<AtomicBool> {
    let over = Arc::new(AtomicBool::new(false));
    if wanted {
        let over = Arc::clone(&over);
        thread::spawn(move || {
            // An error ends it, too.
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            over.store(true, Ordering::Relaxed);
        });
    }
    over
}

/// Prints the board as it stands and ends the program once `limit` has passed, so that a hang tells where it hung.
fn watch(board: &Arc<Board>, limit: Duration) {
    let (board, started) = (Arc::clone(board), Instant::now());
    thread::spawn(move || {
        thread::sleep(limit);
        board.give_up();
        let told = account(&board, started);
        std::process::exit(if told.is_ok() { 0 } else { 1 });
    });
}

/// Prints what a board holds.
fn account(board: &Board, started: Instant) -> Result<()> {
    let mut report = board.report();
    report.elapsed_seconds = started.elapsed().as_secs_f64();
    output::tell(&report)
}
