//! More than 4 GiB one way, past the wrap of the sequence number: byte-exact, then an answer, then small messages.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use serde::Deserialize;
use sidecar_tests::world::{Settings, World};

const LIMIT: Duration = Duration::from_secs(240);
/// As long as this nobody reads while the writer crosses the wrap.
const HOLD: Duration = Duration::from_millis(300);

#[derive(Debug, Deserialize)]
struct Account {
    sent_bytes: u64,
    received_bytes: u64,
    elapsed_seconds: f64,
    corruption: Option<String>,
}

#[test]
fn a_stream_past_the_wrap_is_exact() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&Settings::default())?;
        let b = world.workload("b")?.with_sidecar(&Settings::default())?;
        let to = b.v4(7000).to_string();
        let reader = b.serving("reader", &["wrap-read", "--listen", &to])?;
        let mut writer = a.traffic("writer", &["wrap-write", "--to", &to])?;
        writer.line_within("before the wrap", LIMIT)?;
        // The sidecar stands still, so that the bytes up to the wrap are unread when the sequence numbers of the
        // first hop compare equal again.
        a.sidecar()?.signal(Signal::STOP)?;
        let crossed = cross(&mut writer);
        a.sidecar()?.signal(Signal::CONT)?;
        crossed?;
        let writer: Account = writer.finish(LIMIT)?.success()?.account()?;
        let reader: Account = reader.finish(LIMIT)?.success()?.account()?;
        println!("{writer:?}\n{reader:?}");
        ensure!(
            writer.corruption.is_none() && reader.corruption.is_none(),
            "{writer:?} {reader:?}"
        );
        ensure!(
            writer.sent_bytes > 1 << 32 && reader.received_bytes == writer.sent_bytes,
            "{writer:?} {reader:?}"
        );
        ensure!(
            writer.received_bytes == reader.sent_bytes,
            "{writer:?} {reader:?}"
        );
        println!(
            "{:.0} MB/s",
            writer.sent_bytes as f64 / writer.elapsed_seconds / 1e6
        );
        Ok(())
    });
}

fn cross(writer: &mut sidecar_tests::world::Running) -> Result<()> {
    writer.write(b"go\n")?;
    writer.line("past the wrap")?;
    thread::sleep(HOLD);
    Ok(())
}
