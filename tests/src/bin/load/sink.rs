//! Reads whatever comes on any number of connections, and throws it away.

use std::{
    collections::HashMap,
    io::ErrorKind,
    net::{SocketAddr, TcpListener, TcpStream},
};

use anyhow::{Context, Result};
use clap::Args;
use rustix::{
    event::epoll::EventFlags,
    net::{RecvFlags, recv},
};
use sidecar_tests::output::say;

use crate::poll::Poll;

#[derive(Args)]
pub struct Sink {
    /// Where to listen; may be given several times
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
}

impl Sink {
    pub fn run(self) -> Result<()> {
        let mut poll = Poll::new()?;
        let mut listeners = Vec::new();
        for (token, &address) in (0..).zip(&self.listen) {
            let listener = TcpListener::bind(address).with_context(|| format!("{address}"))?;
            listener.set_nonblocking(true)?;
            poll.add(&listener, token, EventFlags::IN)?;
            listeners.push(listener);
        }
        say("listening")?;
        let mut connections: HashMap<u64, TcpStream> = HashMap::new();
        let mut next = listeners.len() as u64;
        let (mut ready, mut buffer) = (Vec::new(), vec![0_u8; 256 * 1024]);
        loop {
            poll.wait(&mut ready)?;
            for &token in &ready {
                if let Some(listener) = listeners.get(token as usize) {
                    match listener.accept() {
                        Ok((accepted, _)) => {
                            accepted.set_nonblocking(true)?;
                            poll.add(&accepted, next, EventFlags::IN)?;
                            connections.insert(next, accepted);
                            next += 1;
                        }
                        // Gone again.
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error).context("accept"),
                    }
                } else if let Some(connection) = connections.get(&token) {
                    match recv(connection, &mut buffer[..], RecvFlags::empty()) {
                        Ok((_, 0)) => drop(connections.remove(&token)),
                        Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
                        // The load generator has ended.
                        Err(_) => drop(connections.remove(&token)),
                    }
                }
            }
        }
    }
}
