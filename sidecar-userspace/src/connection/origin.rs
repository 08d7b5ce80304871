//! Origin: which address did the client ask for.

use std::{
    fmt::Debug,
    io,
    net::{SocketAddr, SocketAddrV6},
    rc::Rc,
};

use socket2::SockRef;
use tokio::net::TcpStream;

use super::{
    ConnectionContext, Direction, Reason, Source, Worker, accept::Accepted, connect::ConnectError,
};

/// Where original destinations come from. The kernel in production; tests that have no kernel half give
/// their own.
pub trait OriginSource: Debug + Send + Sync {
    /// The original destination of an accepted connection from `peer`, `None` if the client dialled the explicit proxy's
    /// listener itself.
    /// Errors are the operating system's.
    fn original(
        &self,
        direction: Direction,
        accepted: &TcpStream,
        peer: SocketAddr,
    ) -> io::Result<Option<SocketAddr>>;

    /// What the client has bound its socket to, of an accepted outbound connection.
    fn source(&self, _accepted: &TcpStream) -> Source {
        Source::default()
    }
}

/// Asks the socket: `SO_ORIGINAL_DST` for outbound connections, which the kernel half (or conntrack) answers,
/// and the local address for inbound ones, which `sk_lookup` leaves as it was. Whoever was redirected to the inbound
/// listener by NAT has the listener's port there, and conntrack knows the one before.
#[derive(Debug)]
pub struct KernelOrigin {
    pub own_ports: OwnPorts,
}

impl OriginSource for KernelOrigin {
    fn original(
        &self,
        direction: Direction,
        accepted: &TcpStream,
        peer: SocketAddr,
    ) -> io::Result<Option<SocketAddr>> {
        let asked = || {
            let socket = SockRef::from(accepted);
            let answer = if peer.is_ipv4() {
                // A v4-mapped destination arrives at the IPv4 listener.
                answered(socket.original_dst_v4())?
            } else {
                answered(socket.original_dst_v6())?
            };
            Ok::<_, io::Error>(answer.map(canonical))
        };
        match direction {
            Direction::Inbound => {
                let local = canonical(accepted.local_addr()?);
                match local.port() == self.own_ports.inbound {
                    true => Ok(asked()?.or(Some(local))),
                    false => Ok(Some(local)),
                }
            }
            Direction::Outbound => {
                // conntrack answers for connections that nobody steered too, with the listener's own address.
                let own = |address: &SocketAddr| {
                    address.ip().is_loopback()
                        && [self.own_ports.outbound, self.own_ports.steered]
                            .contains(&address.port())
                };
                let original = asked()?.filter(|original| !own(original));
                // Not known is not the same as explicit: nothing may be guessed of where a steered connection wants to go.
                match original.is_none() && accepted.local_addr()?.port() == self.own_ports.steered
                {
                    true => Err(io::Error::other(NOT_HANDED_OVER)),
                    false => Ok(original),
                }
            }
        }
    }

    fn source(&self, accepted: &TcpStream) -> Source {
        Source::of(accepted)
    }
}

const NOT_HANDED_OVER: &str =
    "it was not steered here, or the workload had too many connections under way";

/// The proxy's own listening ports, to notice connections that would come back to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnPorts {
    pub outbound: u16,
    /// Where the kernel half sends connections.
    pub steered: u16,
    pub inbound: u16,
}

/// Begins a connection's context with the checked original destination; `None` in it is a client of the explicit
/// proxy. Errors with [`Reason::OriginUnknown`] and the system's words, or with [`Reason::LoopDetected`].
pub fn origin(accepted: &Accepted, worker: &Rc<Worker>) -> Result<ConnectionContext, ConnectError> {
    let Accepted {
        client,
        direction,
        peer,
        ..
    } = accepted;
    let original = client
        .tcp()
        .and_then(|tcp| worker.origin.original(*direction, tcp, *peer));
    let original = original.map_err(|error| ConnectError {
        detail: Some(error.to_string()),
        ..Reason::OriginUnknown.into()
    })?;
    if original.is_some_and(|original| worker.own_ports.is_loop(*direction, original, *peer)) {
        return Err(Reason::LoopDetected.into());
    }
    let source = match (direction, client.tcp(), original) {
        (Direction::Outbound, Ok(tcp), Some(_)) => worker.origin.source(tcp),
        _ => Source::default(),
    };
    Ok(ConnectionContext {
        snapshot: accepted.snapshot.clone(),
        direction: *direction,
        peer: *peer,
        original,
        source,
        peer_identity: None,
        tls: None,
        recorder: worker.recorder.clone(),
        drain: worker.drain.clone(),
        worker: worker.clone(),
        guard: worker.drain.guard(),
    })
}

impl OwnPorts {
    /// Whether dialling `original` for a client at `peer` would reach this proxy again.
    fn is_loop(self, direction: Direction, original: SocketAddr, peer: SocketAddr) -> bool {
        let (ip, port) = (original.ip(), original.port());
        match direction {
            // Steered connections show the workload's port, never the listener's own.
            Direction::Inbound => port == self.inbound,
            // A client that dials its own host's address has it as its source as well.
            Direction::Outbound => {
                let here =
                    ip.is_loopback() || ip.is_unspecified() || ip == peer.ip().to_canonical();
                here && [self.outbound, self.steered, self.inbound].contains(&port)
            }
        }
    }
}

/// v4-mapped addresses are IPv4 everywhere behind this step. A link-local one keeps its scope, without which it leads nowhere.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 && v6.ip().to_ipv4_mapped().is_none() => {
            SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into()
        }
        _ => without_scope(address),
    }
}

/// As others may be told it: a scope means something on this machine only.
pub fn without_scope(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// No answer where nobody steers: the protocol option is unknown, or there is no entry for the connection.
fn answered(answer: io::Result<socket2::SockAddr>) -> io::Result<Option<SocketAddr>> {
    match answer {
        Ok(address) => Ok(address.as_socket()),
        Err(error) => match rustix::io::Errno::from_io_error(&error) {
            Some(
                rustix::io::Errno::NOPROTOOPT
                | rustix::io::Errno::NOENT
                | rustix::io::Errno::OPNOTSUPP,
            ) => Ok(None),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_addresses_keep_their_scope() {
        let seen = |text: &str| canonical(text.parse().unwrap()).to_string();
        assert_eq!(seen("[fe80::1%3]:80"), "[fe80::1%3]:80");
        assert_eq!(seen("[::ffff:10.0.0.1]:80"), "10.0.0.1:80");
        assert_eq!(seen("[fd00::1]:80"), "[fd00::1]:80");
        let told = without_scope("[fe80::1%3]:80".parse().unwrap());
        assert_eq!(told.to_string(), "[fe80::1]:80");
    }

    #[test]
    fn own_listeners_are_loops() {
        let own = OwnPorts {
            outbound: 15001,
            steered: 15002,
            inbound: 15006,
        };
        let outbound = |original: &str, peer: &str| {
            own.is_loop(
                Direction::Outbound,
                original.parse().unwrap(),
                peer.parse().unwrap(),
            )
        };
        assert!(outbound("127.0.0.1:15001", "127.0.0.1:4000"));
        assert!(outbound("[::1]:15006", "[::1]:4000"));
        assert!(outbound("10.0.0.1:15006", "[::ffff:10.0.0.1]:4000"));
        assert!(!outbound("10.0.0.2:15006", "10.0.0.1:4000"));
        assert!(!outbound("127.0.0.1:8080", "127.0.0.1:4000"));
        let peer = "192.0.2.1:4000".parse().unwrap();
        assert!(own.is_loop(Direction::Inbound, "10.0.0.1:15006".parse().unwrap(), peer));
        assert!(!own.is_loop(Direction::Inbound, "10.0.0.1:8080".parse().unwrap(), peer));
    }

    #[tokio::test]
    async fn without_steering_there_is_no_original_destination() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let _client = TcpStream::connect(address).await.unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        let own_ports = OwnPorts {
            outbound: address.port(),
            steered: 2,
            inbound: 1,
        };
        let origin = KernelOrigin { own_ports };
        let original = |direction| origin.original(direction, &accepted, peer).unwrap();
        assert_eq!(original(Direction::Outbound), None);
        assert_eq!(original(Direction::Inbound), Some(address));
        let own_ports = OwnPorts {
            outbound: 2,
            steered: address.port(),
            inbound: 1,
        };
        let origin = KernelOrigin { own_ports };
        let unknown = origin.original(Direction::Outbound, &accepted, peer);
        assert!(unknown.is_err(), "taken for an explicit client");
    }
}
