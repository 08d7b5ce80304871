//! What was on the link while the demo's requests were made: tcpdump's file, and what kinds of bytes are in it.

use super::world::{Host, World};
use crate::{leftovers, process, signals};
use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// To start, to see what was sent, and to end.
const WITHIN: Duration = Duration::from_secs(30);
/// Of pcap's file and of each packet in it (pcap-savefile(5)).
const FILE_HEADER: usize = 24;
const PACKET_HEADER: usize = 16;
/// TLS records by their first byte (RFC 8446, 5.1), and what a ServerHello says that has chosen TLS 1.3 (4.2.1).
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CHOSEN_TLS_13: &[u8] = &[0, 0x2b, 0, 2, 3, 4];

/// A tcpdump under way; dropped, it is ended.
pub struct Capture {
    child: Child,
    file: PathBuf,
}

/// Counts of what was on the link, and the bytes themselves.
#[derive(Debug, Default, PartialEq)]
pub struct Seen {
    pub packets: usize,
    pub handshakes: usize,
    pub application_data: usize,
    pub tls_13: bool,
    bytes: Vec<u8>,
}

impl Capture {
    /// Of what comes to and from `port` of the host.
    ///
    /// # Errors
    /// If tcpdump does not listen in time.
    pub fn start(world: &World, host: &Host, port: u16) -> Result<Self> {
        let (file, log) = (
            world.directory.join("link.pcap"),
            world.directory.join("tcpdump.log"),
        );
        // If this process is killed, so is tcpdump.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nsenter"]);
        command.arg(format!("--net={}", host.namespace().display()));
        command.args(["tcpdump", "-i", "eth0", "-n", "-U", "--immediate-mode"]);
        command.args(["-Z", "root", "-w"]).arg(&file);
        command.args(["tcp", "port", &port.to_string()]);
        process::clean(&mut command);
        let child = command
            .env(leftovers::RUN_VARIABLE, &world.run)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).context("creating tcpdump's log")?)
            .spawn()
            .context("starting tcpdump")?;
        let mut this = Self { child, file };
        let started = Instant::now();
        loop {
            let said = fs::read_to_string(&log).unwrap_or_default();
            if said.contains("listening on") {
                return Ok(this);
            }
            if let Some(status) = this.child.try_wait().context("waiting for tcpdump")? {
                bail!("tcpdump ended ({status}): {said}");
            }
            patience(started, "tcpdump does not listen")?;
        }
    }

    /// What there was, up to `last`.
    ///
    /// # Errors
    /// If `last` does not come, or the file cannot be read.
    pub fn up_to(self, last: &str) -> Result<Seen> {
        let started = Instant::now();
        loop {
            let file = fs::read(&self.file).context("reading tcpdump's file")?;
            let seen = Seen::of(&file)?;
            if seen.has(last) {
                return Ok(seen);
            }
            patience(started, &format!("tcpdump has not seen {last:?}"))?;
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            // One that is gone needs no signal.
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

impl Seen {
    /// Reads a file of pcap's, little-endian as all machines are that this runs on, of Ethernet frames; its end may be missing.
    fn of(file: &[u8]) -> Result<Self> {
        let mut seen = Self::default();
        let Some((header, mut rest)) = file.split_at_checked(FILE_HEADER) else {
            return Ok(seen);
        };
        ensure!(
            header.starts_with(&0xa1b2_c3d4_u32.to_le_bytes()),
            "tcpdump wrote something else than pcap's format"
        );
        while let Some((header, behind)) = rest.split_at_checked(PACKET_HEADER) {
            let bytes: [u8; 4] = header[8..12].try_into().unwrap_or_default();
            let length = u32::from_le_bytes(bytes) as usize;
            let Some((frame, behind)) = behind.split_at_checked(length) else {
                break;
            };
            seen.packets += 1;
            if let Some(payload) = payload(frame) {
                seen.add(payload);
            }
            rest = behind;
        }
        Ok(seen)
    }

    /// A record is told by how its segment begins; one that begins within a segment is not counted.
    fn add(&mut self, payload: &[u8]) {
        match payload {
            [HANDSHAKE, 3, ..] => {
                self.handshakes += 1;
                self.tls_13 |= contains(payload, CHOSEN_TLS_13);
            }
            [APPLICATION_DATA, 3, 3, ..] => self.application_data += 1,
            _ => {}
        }
        self.bytes.extend_from_slice(payload);
    }

    /// Whether the link carried that text as it is.
    pub fn has(&self, text: &str) -> bool {
        contains(&self.bytes, text.as_bytes())
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// What a frame carries behind its Ethernet, IPv4 and TCP headers.
fn payload(frame: &[u8]) -> Option<&[u8]> {
    let packet = frame.get(14..)?;
    let ip_header = usize::from(packet.first()? & 0x0f) * 4;
    // Short frames are padded; the packet says how long it is.
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    let segment = packet.get(ip_header..total)?;
    let tcp_header = usize::from(segment.get(12)? >> 4) * 4;
    segment.get(tcp_header..)
}

fn patience(since: Instant, complaint: &str) -> Result<()> {
    if signals::interrupted().is_some() {
        bail!("watching the link");
    }
    ensure!(since.elapsed() < WITHIN, "{complaint}");
    std::thread::sleep(Duration::from_millis(10));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 14 + 20 + 32];
        frame[14] = 0x45;
        let total = u16::try_from(20 + 32 + payload.len()).unwrap();
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        frame[14 + 20 + 12] = 0x80;
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn records_are_counted_and_text_is_found() {
        let mut file = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
        file.resize(FILE_HEADER, 0);
        let hello = [&[HANDSHAKE, 3, 3, 0, 90, 2][..], CHOSEN_TLS_13].concat();
        for payload in [
            &hello[..],
            &[APPLICATION_DATA, 3, 3, 0, 1, 9],
            b"",
            b"GET /",
        ] {
            let frame = frame(payload);
            file.extend_from_slice(&[0; 8]);
            file.extend_from_slice(&u32::try_from(frame.len()).unwrap().to_le_bytes());
            file.extend_from_slice(&[0; 4]);
            file.extend_from_slice(&frame);
        }
        // The last packet is being written.
        file.extend_from_slice(&[1; 20]);
        let seen = Seen::of(&file).unwrap();
        assert_eq!((seen.packets, seen.handshakes), (4, 1));
        assert_eq!((seen.application_data, seen.tls_13), (1, true));
        assert!(seen.has("GET /") && !seen.has("POST"));
        assert!(Seen::of(&[0; 100]).is_err());
    }
}
