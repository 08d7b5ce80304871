//! A machine: QEMU with one kernel, from its first instruction to the last line that `guest` tells.

use super::{
    kernel::Kernel,
    table::{Row, Step},
    variant::Variant,
};
use crate::{signals, step};
use anyhow::{Context as _, Result};
use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

/// From the start to the end of a machine; on an idle one a minute or two.
const LIMIT: Duration = Duration::from_secs(15 * 60);
/// Without a word from the machine for so long, that is said.
const REMINDER: Duration = Duration::from_secs(30);
/// How much of the console is shown when a machine does not come to its end.
const SHOWN_LINES: usize = 30;

/// Boots `kernel` and follows what `guest` tells.
///
/// # Errors
/// If QEMU cannot be started. What goes wrong in the machine is in the row.
pub fn run(name: &str, kernel: &Kernel, variant: Variant, initramfs: &Path) -> Result<Row> {
    let console = initramfs.with_file_name("console.log");
    let started = Instant::now();
    eprintln!("   {name} ({}): booting", kernel.release);
    let (mut machine, lines) = Machine::boot(kernel, variant, initramfs, &console)?;
    let mut row = Row::new(name, &kernel.release);
    let mut heard = Instant::now();
    let failure = loop {
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(line) => {
                heard = Instant::now();
                if let Some(step) = Step::read(&line) {
                    eprintln!("   {name}: {step}");
                    row.add(step);
                }
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => break None,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if signals::interrupted().is_some() {
            break Some("interrupted".to_owned());
        }
        if started.elapsed() > LIMIT {
            break Some(format!("not done after {}", step::seconds(LIMIT)));
        }
        if heard.elapsed() > REMINDER {
            heard = Instant::now();
            eprintln!(
                "   {name} … still at it after {}",
                step::seconds(started.elapsed())
            );
        }
    };
    machine.end();
    row.seconds = started.elapsed().as_secs_f64();
    row.broken = failure
        .or_else(|| (!row.ended()).then(|| "the machine ended before its steps did".to_owned()));
    if row.broken.is_some() {
        eprintln!("{}", last_lines(&console));
    }
    row.console = Some(console);
    Ok(row)
}

/// QEMU under way. Dropping it ends it.
struct Machine(Child);

impl Machine {
    fn boot(
        kernel: &Kernel,
        variant: Variant,
        initramfs: &Path,
        console: &Path,
    ) -> Result<(Self, Receiver<String>)> {
        let mut qemu = Command::new("qemu-system-x86_64");
        // KVM is not asked for: nested, it is often there and does not work. Five levels of page tables are slow to emulate.
        // QEMU 7.2 faults at times at the cmpxchg16b of Linux 6.12. Newer kernels need it: without, BPF maps get no memory there.
        let processor = match kernel.release.starts_with("6.12.") {
            true => "max,la57=off,cx16=off",
            false => "max,la57=off",
        };
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", processor])
            .args([
                "-smp",
                "2",
                "-m",
                "2G",
                "-nodefaults",
                "-display",
                "none",
                "-no-reboot",
            ])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(initramfs)
            // A panic ends the machine, as -no-reboot has it.
            .arg("-append")
            .arg(format!(
                "console=ttyS0 panic=-1 mitigations=off quiet{}",
                variant.arguments()
            ))
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = qemu
            .spawn()
            .context("starting qemu-system-x86_64: run `cargo xtask setup`")?;
        let output = child.stdout.take();
        let machine = Self(child);
        Ok((machine, lines(output.context("QEMU has no output")?)))
    }

    fn end(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

fn lines(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

fn last_lines(console: &Path) -> String {
    let said = fs::read(console).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<_> = said.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}
