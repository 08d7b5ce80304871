//! `load`: the benchmark's load generator, and the servers that streams and gRPC calls need. One thread and no blocking socket:
//! it shares the CPUs with what it measures.
//!
//! # Layout
//!
//! - [`requests`]: HTTP/1.1, raw sockets under epoll; [`http1`] is what it reads, [`schedule`] when it sends
//! - [`multiplexed`]: HTTP/2 and gRPC calls; [`unary`] answers the latter
//! - [`stream`], [`sink`]: one way, as much as fits
//! - [`recorder`]: what is measured, and when

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sidecar_tests::output;

mod http1;
mod multiplexed;
mod poll;
mod recorder;
mod requests;
mod schedule;
mod sink;
mod stream;
mod unary;

#[derive(Parser)]
#[command(about = "The benchmark's load generator")]
struct Arguments {
    #[command(subcommand)]
    program: Program,
}

#[derive(Subcommand)]
enum Program {
    /// Requests by HTTP/1.1
    Requests(requests::Requests),
    /// Requests by HTTP/2, or unary gRPC calls
    Multiplexed(multiplexed::Multiplexed),
    /// Writes without end
    Stream(stream::Stream),
    /// Read whatever comes
    Sink(sink::Sink),
    /// Answer unary gRPC calls with what they carry
    Unary(unary::Unary),
    /// Use a CPU without end: with SCHED_IDLE it keeps the CPU awake and takes nothing from anybody
    Spin,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().program {
        Program::Requests(program) => program.run(),
        Program::Multiplexed(program) => program.run(),
        Program::Stream(program) => program.run(),
        Program::Sink(program) => program.run(),
        Program::Unary(program) => program.run(),
        Program::Spin => loop {
            std::hint::spin_loop();
        },
    };
    output::end("load", result)
}
