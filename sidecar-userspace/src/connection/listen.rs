//! Accept, first half: the listening sockets, bound before anything is steered to them.
//!
//! Each worker has sockets of its own (`SO_REUSEPORT`), so that workers share neither a queue nor a wake-up.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    num::NonZeroUsize,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{liveness, origin::OwnPorts};
use crate::{
    model::{Listeners as Configured, Timeouts},
    sys::sockopt,
};

/// Connections that wait for `accept`; the kernel's `net.core.somaxconn` may make it less.
const BACKLOG: i32 = 4096;

/// Connections that may have sent data before their handshake was complete.
const FAST_OPEN_PENDING: i32 = 1024;

/// Attempts to find a port that is free in both families.
const PORT_ATTEMPTS: usize = 16;

/// The proxy's listening sockets. Clients can connect as soon as they exist; they are served once the proxy runs.
#[derive(Debug)]
pub struct Listeners {
    /// The ports in use, where the configuration may have said 0.
    pub ports: OwnPorts,
    /// One entry for each worker.
    pub(crate) workers: Vec<WorkerListeners>,
    pub(crate) admin: AdminListeners,
}

/// Descriptors of a sidecar's listening sockets: for each worker its outbound ones and its inbound one, then admin,
/// metrics and health.
#[derive(Debug)]
pub struct Handles {
    pub workers: usize,
    /// Outbound sockets of each worker.
    pub outbound: usize,
    pub sockets: Vec<OwnedFd>,
}

/// The sockets of the admin thread.
#[derive(Debug)]
pub(crate) struct AdminListeners {
    pub admin: TcpListener,
    pub metrics: TcpListener,
    pub health: TcpListener,
}

/// The sockets of one worker.
#[derive(Debug)]
pub(crate) struct WorkerListeners {
    /// Loopback, IPv4 and, where the host has it, IPv6: the explicit proxy's, then those of steered connections.
    pub outbound: Vec<TcpListener>,
    /// Every address, both families.
    pub inbound: TcpListener,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for {purpose} connections: {source}")]
pub struct ListenError {
    pub address: SocketAddr,
    /// `outbound`, `steered`, `inbound`, `admin`, `metrics` or `health`.
    pub purpose: &'static str,
    pub source: io::Error,
}

impl Listeners {
    /// Binds the configured ports for `workers` threads. Another process on one of the ports is an error.
    pub fn bind(
        configured: &Configured,
        timeouts: &Timeouts,
        workers: NonZeroUsize,
    ) -> Result<Self, ListenError> {
        let v4 = Kind {
            ip: Ipv4Addr::LOCALHOST.into(),
            purpose: "outbound",
        };
        let v6 = Kind {
            ip: Ipv6Addr::LOCALHOST.into(),
            purpose: "outbound",
        };
        let has_v6 = v6.is_supported();
        let any = match has_v6 {
            true => Kind {
                ip: Ipv6Addr::UNSPECIFIED.into(),
                purpose: "inbound",
            },
            false => Kind {
                ip: Ipv4Addr::UNSPECIFIED.into(),
                purpose: "inbound",
            },
        };
        let loopback = if has_v6 { vec![v4, v6] } else { vec![v4] };
        let mut outbound = bind_group(&loopback, configured.outbound, timeouts, workers)?;
        let steered = Kind::all(&loopback, "steered");
        let steered = bind_group(&steered, configured.steered, timeouts, workers)?;
        for (worker, steered_sockets) in outbound.sockets.iter_mut().zip(steered.sockets) {
            worker.extend(steered_sockets);
        }
        let inbound = bind_group(&[any], configured.inbound, timeouts, workers)?;
        let ports = OwnPorts {
            outbound: outbound.port,
            steered: steered.port,
            inbound: inbound.port,
        };
        let workers = outbound
            .sockets
            .into_iter()
            .zip(inbound.sockets.into_iter().flatten());
        let workers = workers
            .map(|(outbound, inbound)| WorkerListeners { outbound, inbound })
            .collect();
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, configured.admin));
        let admin = AdminListeners {
            admin: bind_plain(admin, "admin")?,
            metrics: bind_plain(configured.metrics, "metrics")?,
            health: bind_plain(configured.health, "health")?,
        };
        Ok(Self {
            ports,
            workers,
            admin,
        })
    }

    /// Further descriptors of all sockets, for a sidecar that takes over.
    pub fn handles(&self) -> io::Result<Handles> {
        let mut sockets = Vec::new();
        for worker in &self.workers {
            for listener in worker.outbound.iter().chain([&worker.inbound]) {
                sockets.push(listener.try_clone()?.into());
            }
        }
        let AdminListeners {
            admin,
            metrics,
            health,
        } = &self.admin;
        for listener in [admin, metrics, health] {
            sockets.push(listener.try_clone()?.into());
        }
        let first = self.workers.first();
        Ok(Handles {
            workers: self.workers.len(),
            outbound: first.map_or(0, |worker| worker.outbound.len()),
            sockets,
        })
    }

    /// The sockets of a sidecar that is taken over from. Both accept from them while both have them.
    pub fn taken_over(handles: Handles) -> io::Result<Self> {
        let Handles {
            workers,
            outbound,
            sockets,
        } = handles;
        let mut sockets = sockets.into_iter().map(TcpListener::from);
        let mut next = || {
            let listener = sockets.next();
            let listener = listener.ok_or_else(|| io::Error::other("a socket is missing"))?;
            listener.set_nonblocking(true)?;
            Ok::<_, io::Error>(listener)
        };
        let mut taken = Vec::new();
        for _ in 0..workers {
            taken.push(WorkerListeners {
                outbound: (0..outbound).map(|_| next()).collect::<Result<_, _>>()?,
                inbound: next()?,
            });
        }
        let admin = AdminListeners {
            admin: next()?,
            metrics: next()?,
            health: next()?,
        };
        let port = |listener: Option<&TcpListener>| {
            let listener = listener.ok_or_else(|| io::Error::other("no worker"))?;
            listener.local_addr().map(|address| address.port())
        };
        let first = taken.first();
        let ports = OwnPorts {
            outbound: port(first.and_then(|worker| worker.outbound.first()))?,
            steered: port(first.and_then(|worker| worker.outbound.last()))?,
            inbound: port(first.map(|worker| &worker.inbound))?,
        };
        Ok(Self {
            ports,
            workers: taken,
            admin,
        })
    }

    /// The inbound sockets, for the kernel half to hand connections to.
    pub fn inbound_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.workers.iter().map(|worker| worker.inbound.as_fd())
    }
}

/// `[::]` stands for every address of both families, also where the host has no IPv6.
fn bind_plain(address: SocketAddr, purpose: &'static str) -> Result<TcpListener, ListenError> {
    let any = Ipv6Addr::UNSPECIFIED.into();
    let without_v6 = address.ip() == any && !Kind { ip: any, purpose }.is_supported();
    let address = match without_v6 {
        true => SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())),
        false => address,
    };
    // The standard library sets SO_REUSEADDR.
    let listener = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|source| ListenError {
        address,
        purpose,
        source,
    })
}

/// Sockets that share a port: for each worker, one for each address.
struct Group {
    port: u16,
    sockets: Vec<Vec<TcpListener>>,
}

#[derive(Clone, Copy)]
struct Kind {
    ip: std::net::IpAddr,
    purpose: &'static str,
}

fn bind_group(
    kinds: &[Kind],
    port: u16,
    timeouts: &Timeouts,
    workers: NonZeroUsize,
) -> Result<Group, ListenError> {
    let mut attempts_left = if port == 0 { PORT_ATTEMPTS } else { 1 };
    loop {
        attempts_left -= 1;
        match try_bind_group(kinds, port, timeouts, workers) {
            // A port that the kernel chose for one family can be taken in the other.
            Err(error) if attempts_left > 0 && error.source.kind() == io::ErrorKind::AddrInUse => {}
            result => return result,
        }
    }
}

fn try_bind_group(
    kinds: &[Kind],
    mut port: u16,
    timeouts: &Timeouts,
    workers: NonZeroUsize,
) -> Result<Group, ListenError> {
    // With SO_REUSEPORT a second proxy would silently take half of the connections. A socket without it
    // notices the other one.
    let mut probes = Vec::new();
    for kind in kinds {
        let probe = kind
            .socket(port, false, timeouts)
            .map_err(|source| kind.error(port, source))?;
        port = probe
            .local_addr()
            .map_err(|source| kind.error(port, source))?
            .port();
        probes.push(probe);
    }
    drop(probes);
    let worker = |_| {
        let listen = |kind: &Kind| {
            let listener = kind.socket(port, true, timeouts).and_then(|socket| {
                SockRef::from(&socket).listen(BACKLOG)?;
                // Kernels without it serve those clients as all others.
                let _ = sockopt::set_fastopen(&socket, FAST_OPEN_PENDING);
                Ok(socket)
            });
            listener.map_err(|source| kind.error(port, source))
        };
        kinds.iter().map(listen).collect()
    };
    let sockets = (0..workers.get()).map(worker).collect::<Result<_, _>>()?;
    Ok(Group { port, sockets })
}

impl Kind {
    /// The same addresses for another purpose.
    fn all(kinds: &[Self], purpose: &'static str) -> Vec<Self> {
        let kinds = kinds.iter();
        kinds.map(|kind| Self { purpose, ..*kind }).collect()
    }

    fn is_supported(self) -> bool {
        Socket::new(self.domain(), Type::STREAM, None)
            .is_ok_and(|socket| socket.bind(&SocketAddr::new(self.ip, 0).into()).is_ok())
    }

    /// A bound socket; accepted sockets inherit its options.
    fn socket(self, port: u16, shared: bool, timeouts: &Timeouts) -> io::Result<TcpListener> {
        let socket = Socket::new(
            self.domain(),
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        // Connections of a former proxy in TIME_WAIT are no obstacle.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
        if self.ip.is_ipv6() {
            // The loopback sockets leave IPv4 to their sibling; the inbound one serves both.
            socket.set_only_v6(self.ip.is_loopback())?;
        }
        socket.set_tcp_nodelay(true)?;
        liveness::watch(&SockRef::from(&socket), timeouts)?;
        socket.bind(&SocketAddr::new(self.ip, port).into())?;
        Ok(socket.into())
    }

    fn domain(self) -> Domain {
        Domain::for_address(SocketAddr::new(self.ip, 0))
    }

    fn error(self, port: u16, source: io::Error) -> ListenError {
        ListenError {
            address: SocketAddr::new(self.ip, port),
            purpose: self.purpose,
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_that_are_taken_over_are_the_same() {
        let free = Configured {
            outbound: 0,
            steered: 0,
            inbound: 0,
            admin: 0,
            metrics: "127.0.0.1:0".parse().unwrap(),
            health: "127.0.0.1:0".parse().unwrap(),
        };
        let two = NonZeroUsize::new(2).unwrap();
        let old = Listeners::bind(&free, &Timeouts::default(), two).unwrap();
        let new = Listeners::taken_over(old.handles().unwrap()).unwrap();
        assert_eq!(new.ports, old.ports);
        assert_eq!(new.inbound_fds().count(), 2);
        let address = |listeners: &Listeners| listeners.admin.health.local_addr().unwrap();
        assert_eq!(address(&new), address(&old));
        let mut short = old.handles().unwrap();
        short.sockets.pop();
        assert!(Listeners::taken_over(short).is_err());
    }

    #[test]
    fn families_share_a_port_and_a_second_proxy_is_noticed() {
        let free = Configured {
            outbound: 0,
            steered: 0,
            inbound: 0,
            admin: 0,
            metrics: "127.0.0.1:0".parse().unwrap(),
            health: "127.0.0.1:0".parse().unwrap(),
        };
        let two = NonZeroUsize::new(2).unwrap();
        let first = Listeners::bind(&free, &Timeouts::default(), two).unwrap();
        assert_eq!(first.inbound_fds().count(), 2);
        for socket in first.workers.iter().flat_map(|worker| &worker.outbound) {
            let port = socket.local_addr().unwrap().port();
            assert!([first.ports.outbound, first.ports.steered].contains(&port));
        }
        let taken = Configured {
            outbound: first.ports.outbound,
            ..free
        };
        let error = Listeners::bind(&taken, &Timeouts::default(), two).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(error.purpose, "outbound");
    }
}
