//! One datagram, and what comes of it, for machines without Python.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::Result;
use rustix::io::Errno;
use serde::Serialize;
use sidecar_tests::output;

#[derive(clap::Args)]
pub struct Datagram {
    #[arg(long)]
    to: SocketAddr,
    /// Connect the socket first
    #[arg(long)]
    connect: bool,
}

#[derive(Serialize)]
struct Account {
    sent: bool,
    /// Refused by a rule.
    denied: bool,
    error: Option<String>,
}

impl Datagram {
    pub fn run(self) -> Result<()> {
        let unspecified = match self.to.ip() {
            IpAddr::V4(_) => IpAddr::from([0; 4]),
            IpAddr::V6(_) => IpAddr::from([0; 16]),
        };
        let socket = UdpSocket::bind((unspecified, 0))?;
        let sent = match self.connect {
            true => socket.connect(self.to).and_then(|()| socket.send(b"x")),
            false => socket.send_to(b"x", self.to),
        };
        output::tell(&Account {
            sent: sent.is_ok(),
            denied: sent
                .as_ref()
                .is_err_and(|error| Errno::from_io_error(error) == Some(Errno::PERM)),
            error: sent.err().map(|error| error.to_string()),
        })
    }
}
