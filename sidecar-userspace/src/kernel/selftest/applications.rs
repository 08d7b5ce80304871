//! The ways of a message that have an application at one end: from its proxy, and past both proxies from another application.
//! Ours are marked as one before they listen or connect.

use std::{
    io::{ErrorKind, Read},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect, socket_with},
    pipe::{SpliceFlags, pipe, splice},
};
use sidecar_common::{address::Address, socket_state::SocketState};

use super::{
    Observer,
    stream::{Check, cannot_connect, expect, expect_end, listen, prepare, readable, send},
};
use crate::{
    model::Level,
    sys::sockopt::{self, Answer},
};

/// Longer than an application that reads leaves its proxy without room.
const ROOM_WITHIN: Duration = Duration::from_secs(1);
/// Whom the application is shown as client; nobody has this address (TEST-NET-1).
const CLIENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 1);

/// A connection that a proxy has made to its application.
struct Inbound {
    proxy: TcpStream,
    application: TcpStream,
    /// Bytes that the proxy has sent, and the application has read.
    sent: usize,
    received: usize,
}

impl Inbound {
    /// `nonblocking`: the application's socket, from the time that it is accepted.
    fn new(observer: &mut dyn Observer, nonblocking: bool) -> Result<Self, String> {
        let listener = listen()?;
        let state = SocketState {
            flags: SocketState::NONBLOCKING,
            ..SocketState::default()
        };
        observer.mark(listener.as_fd(), state)?;
        let proxy = dial(&listener, |proxy| {
            sockopt::claim_peer(proxy, CLIENT).map_err(|e| format!("claim: {e}"))
        })?;
        let (application, _) = listener.accept().map_err(cannot_connect)?;
        prepare(&proxy)?;
        prepare(&application)?;
        let mut inbound = Self {
            proxy,
            application,
            sent: 0,
            received: 0,
        };
        inbound.set_nonblocking(nonblocking)?;
        Ok(inbound)
    }

    /// Of the application's socket.
    fn set_nonblocking(&mut self, nonblocking: bool) -> Check {
        let set = self.application.set_nonblocking(nonblocking);
        set.map_err(|e| e.to_string())
    }

    /// As our proxies do: no more than there is room for. Waits for room.
    fn send(&mut self, length: usize) -> Check {
        let end = self.sent + length;
        let deadline = Instant::now() + ROOM_WITHIN;
        while self.sent < end {
            let left = end - self.sent;
            let room = match sockopt::send_window(&self.proxy) {
                Answer::Tcp => left,
                Answer::Bytes(bytes) if bytes > 0 => left.min(bytes as usize),
                Answer::Bytes(_) | Answer::Undecided if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                Answer::Bytes(_) | Answer::Undecided => {
                    return Err("there is no room for the application's bytes".to_owned());
                }
            };
            send(&mut self.proxy, &mut self.sent, room)?;
        }
        Ok(())
    }

    /// All that was sent.
    fn receive(&mut self) -> Check {
        expect(&mut self.application, &mut self.received, self.sent)
    }
}

/// A socket of ours, connected to `listener` after `prepared`.
fn dial(
    listener: &TcpListener,
    prepared: impl FnOnce(&TcpStream) -> Check,
) -> Result<TcpStream, String> {
    let address = listener.local_addr().map_err(cannot_connect)?;
    let made = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    );
    let socket = TcpStream::from(made.map_err(|e| cannot_connect(e.into()))?);
    prepared(&socket)?;
    match connect(&socket, &address) {
        // One that does not block: over loopback it is connected when somebody accepts.
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(cannot_connect(error.into())),
    }
}

/// Messages are redirected to an application, in order, no more than it has room for, and the end comes after them.
pub fn towards(observer: &mut dyn Observer, credit_bytes: u32) -> Check {
    let mut inbound = Inbound::new(observer, true)?;
    let before = observer.redirected()?;
    for _ in 0..8 {
        inbound.send(512)?;
        inbound.receive()?;
    }
    if observer.redirected()? - before < 8 {
        return Err("messages to an application are not redirected".to_owned());
    }
    let (mut returned, mut answered) = (0, 0);
    send(&mut inbound.application, &mut returned, 512)?;
    expect(&mut inbound.proxy, &mut answered, returned)?;
    // Without a reader.
    let mut unread = 0;
    while let Answer::Bytes(bytes) = sockopt::send_window(&inbound.proxy) {
        if bytes == 0 {
            break;
        }
        unread += bytes;
        if unread > credit_bytes {
            return Err(format!(
                "{unread} bytes for an application that does not read"
            ));
        }
        send(&mut inbound.proxy, &mut inbound.sent, bytes as usize)?;
    }
    inbound.receive()?;
    inbound.send(1000)?;
    let ended = inbound.proxy.shutdown(Shutdown::Write);
    ended.map_err(|e| format!("shutdown: {e}"))?;
    inbound.receive()?;
    expect_end(&mut inbound.application)
}

/// `FIONREAD` counts what was redirected to an application.
pub fn fionread(observer: &mut dyn Observer) -> Check {
    let mut inbound = Inbound::new(observer, true)?;
    inbound.send(700)?;
    readable(&inbound.application, 700)?;
    inbound.receive()?;
    readable(&inbound.application, 0)
}

/// An application whose bytes take TCP after all finds them as if its socket had never been in the map, whether this shows
/// before the first one or later.
pub fn back_to_tcp(observer: &mut dyn Observer) -> Check {
    let mut late = Inbound::new(observer, false)?;
    late.send(700)?;
    // Made so after the proxy's first message, as asyncio and Java NIO do.
    late.set_nonblocking(true)?;
    readable(&late.application, 700)?;
    late.receive()?;
    late.send(300)?;
    readable(&late.application, 300)?;
    late.receive()?;

    let mut early = Inbound::new(observer, true)?;
    early.send(500)?;
    early.set_nonblocking(false)?;
    if sockopt::send_window(&early.proxy) != Answer::Bytes(0) {
        return Err("bytes would come by TCP while others wait beside it".to_owned());
    }
    early.receive()?;
    early.send(300)?;
    readable(&early.application, 300)?;
    early.receive()?;
    let (mut returned, mut answered) = (0, 0);
    send(&mut early.application, &mut returned, 512)?;
    expect(&mut early.proxy, &mut answered, returned)
}

/// Whoever splices while something redirected waits is noticed by that, and his connection can be reset.
pub fn blind_reader(observer: &mut dyn Observer) -> Check {
    let mut inbound = Inbound::new(observer, true)?;
    inbound.send(100)?;
    let (_read_end, write_end) = pipe().map_err(|e| e.to_string())?;
    // It does not see them.
    let _ = splice(
        &inbound.application,
        None,
        &write_end,
        None,
        4096,
        SpliceFlags::NONBLOCK,
    );
    let noticed = observer.reset_blind();
    observer.take_splice()?;
    if !noticed? {
        return Err("a reader who does not see what waits goes unnoticed".to_owned());
    }
    // What was redirected is read first.
    let _ = inbound.receive();
    match inbound.application.take_error() {
        Ok(Some(_)) => Ok(()),
        Ok(None) => match inbound.application.read(&mut [0]) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Ok(()),
            other => Err(format!("a connection that was reset gives {other:?}")),
        },
        Err(error) => Err(error.to_string()),
    }
}

/// `FIONREAD` counts what came by TCP to an application whose socket stays in the map, as it does where only what the
/// application sends is redirected.
pub fn fionread_of_tcp(observer: &mut dyn Observer) -> Check {
    observer.allow(Level::TowardsProxies)?;
    let mut inbound = Inbound::new(observer, true)?;
    // Without asking for room: by TCP.
    send(&mut inbound.proxy, &mut inbound.sent, 700)?;
    readable(&inbound.application, 700)?;
    inbound.receive()
}

/// From one application to the other, past the proxies, and never before what is still under way.
pub fn joined(observer: &mut dyn Observer) -> Check {
    let mut inbound = Inbound::new(observer, true)?;
    let listener = listen()?;
    let mut client = dial(&listener, |client| {
        client.set_nonblocking(true).map_err(|e| e.to_string())?;
        let state = SocketState {
            flags: SocketState::STEERED,
            original: Address::from(CLIENT),
            ..SocketState::default()
        };
        observer.mark(client.as_fd(), state)
    })?;
    let (mut near, _) = listener.accept().map_err(cannot_connect)?;
    prepare(&client)?;
    prepare(&near)?;
    let mut taken = 0;
    let mut by_way_of_proxies = |near: &mut TcpStream, inbound: &mut Inbound| -> Check {
        let mut sent = inbound.sent;
        send(&mut client, &mut sent, 512)?;
        expect(near, &mut taken, sent)?;
        inbound.send(512)?;
        inbound.receive()
    };
    by_way_of_proxies(&mut near, &mut inbound)?;
    sockopt::join(&near, &inbound.proxy).map_err(|e| format!("join: {e}"))?;
    // Nothing is said of what has arrived.
    by_way_of_proxies(&mut near, &mut inbound)?;
    let settled = sockopt::settle(&inbound.proxy, inbound.sent as u64);
    settled.map_err(|e| format!("settle: {e}"))?;
    let before = observer.joined()?;
    let mut position = inbound.sent;
    for _ in 0..8 {
        send(&mut client, &mut position, 512)?;
        expect(&mut inbound.application, &mut inbound.received, position)?;
    }
    match observer.joined()? - before {
        8 => Ok(()),
        joined => Err(format!("{joined} of 8 messages went past the proxies")),
    }
}
