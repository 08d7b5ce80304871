//! How far a run has come: one line that changes where there is a terminal, else a line for each sample.

use std::{
    io::{self, IsTerminal, Write},
    time::Instant,
};

use super::{figures::Figure, mode::Mode, row::Row, run::Sample, terminal::number};

pub struct Progress {
    all: usize,
    done: usize,
    started: Instant,
    changes: bool,
}

impl Progress {
    pub fn new(all: usize) -> Self {
        Self {
            all,
            done: 0,
            started: Instant::now(),
            changes: io::stderr().is_terminal(),
        }
    }

    pub fn begins(&mut self, row: &Row, mode: &Mode, round: usize) {
        if self.changes {
            let left = self.left();
            self.show(&format!(
                "\r\x1b[2K{}/{} {row} {mode}, round {round}{left}",
                self.done + 1,
                self.all
            ));
        }
    }

    pub fn ends(&mut self, sample: &Sample) {
        self.done += 1;
        if !self.changes {
            let noisy = if sample.noisy { ", noisy" } else { "" };
            eprintln!(
                "{}/{} {} {}, round {}: p50 {} µs, {} /s{noisy}",
                self.done,
                self.all,
                sample.row,
                sample.mode,
                sample.round,
                number(Figure::P50.of(sample), 0),
                number(Figure::Rate.of(sample), 0),
            );
        }
    }

    pub fn done(&self) {
        if self.changes {
            self.show("\r\x1b[2K");
        }
    }

    fn left(&self) -> String {
        if self.done == 0 {
            return String::new();
        }
        let each = self.started.elapsed() / u32::try_from(self.done).unwrap_or(u32::MAX);
        let left = each * u32::try_from(self.all - self.done).unwrap_or_default();
        format!(
            ", about {} min {:02} s left",
            left.as_secs() / 60,
            left.as_secs() % 60
        )
    }

    fn show(&self, text: &str) {
        let mut out = io::stderr().lock();
        // Progress that cannot be shown is no reason to stop.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}
