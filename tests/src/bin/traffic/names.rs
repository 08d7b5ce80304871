//! What the two ends of a connection are called, seen from either; and a server that speaks first.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use sidecar_tests::output::{say, tell};
use socket2::{SockAddr, SockRef};

use crate::connect;

#[derive(Args)]
pub struct Names {
    #[arg(long)]
    listen: SocketAddr,
    /// Join others that listen on the same port.
    #[arg(long)]
    reuse_port: bool,
}

#[derive(Args)]
pub struct Call {
    #[arg(long)]
    to: SocketAddr,
    /// Write this first.
    #[arg(long)]
    send: Option<String>,
}

#[derive(Args)]
pub struct Banner {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long, default_value = "220 ready")]
    banner: String,
}

/// How long to wait for the first byte, and for those that may follow.
const PATIENCE: Duration = Duration::from_secs(20);
const REST: Duration = Duration::from_secs(2);

/// An accepted connection.
#[derive(Serialize)]
struct Accepted {
    peer: SocketAddr,
    accepted_from: SocketAddr,
    local: SocketAddr,
    original_destination: Option<SocketAddr>,
}

/// A connection made.
#[derive(Serialize)]
struct Called {
    peer: SocketAddr,
    local: SocketAddr,
    /// All that came until the other end closed or nothing more came for two seconds.
    received: String,
    connect_us: f64,
    /// From the call to the first byte that came.
    first_byte_us: Option<f64>,
}

impl Names {
    /// Serves until it is killed: one line of JSON per connection, which is then closed.
    pub fn run(self) -> Result<()> {
        let listener = if self.reuse_port {
            shared_listener(self.listen)?
        } else {
            connect::listen(self.listen, false)?
        };
        say(format_args!("listening {}", listener.local_addr()?))?;
        loop {
            let (mut stream, accepted_from) = listener.accept()?;
            let account = Accepted {
                peer: stream.peer_addr()?,
                accepted_from,
                local: stream.local_addr()?,
                original_destination: original_destination(&stream),
            };
            tell(&account)?;
            // To the caller as well; whether it still listens is its own affair.
            let _ = serde_json::to_writer(&mut stream, &account);
        }
    }
}

impl Call {
    pub fn run(self) -> Result<()> {
        let started = Instant::now();
        let mut stream = connect::dial(self.to, &connect::Dial::default())?;
        let connect_us = started.elapsed().as_secs_f64() * 1e6;
        let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
        stream.write_all(self.send.unwrap_or_default().as_bytes())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (mut received, mut first_byte_us) = (vec![0; 65536], None);
        let count = stream.read(&mut received).unwrap_or(0);
        received.truncate(count);
        if count > 0 {
            first_byte_us = Some(started.elapsed().as_secs_f64() * 1e6);
            stream.set_read_timeout(Some(REST))?;
            // An end by time-out is as good as any: what came is what counts.
            let _ = stream.read_to_end(&mut received);
        }
        let received = String::from_utf8_lossy(&received).into_owned();
        tell(&Called {
            peer,
            local,
            received,
            connect_us,
            first_byte_us,
        })
    }
}

impl Banner {
    /// Serves until it is killed.
    pub fn run(self) -> Result<()> {
        let listener = connect::listen(self.listen, false)?;
        say(format_args!("listening {}", listener.local_addr()?))?;
        loop {
            let (stream, _) = listener.accept()?;
            let banner = format!("{}\r\n", self.banner);
            std::thread::spawn(move || {
                let (mut reader, mut writer) = (&stream, &stream);
                writer.write_all(banner.as_bytes())?;
                std::io::copy(&mut reader, &mut writer)
            });
        }
    }
}

fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let original = if stream.local_addr().ok()?.is_ipv4() {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    original.ok().as_ref().and_then(SockAddr::as_socket)
}

fn shared_listener(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}
