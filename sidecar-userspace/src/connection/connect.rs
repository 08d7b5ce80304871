//! Connect: dial the destination, within the connect timeout whatever happens.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::net::{TcpSocket, TcpStream};

use super::{
    ConnectionContext, Direction, Reason, Source, Transport,
    balance::{self, Load},
    route::Target,
    tunnel,
};
use crate::{
    model::Protocol,
    sys::sockopt::{self, Handover},
    tls::{self, Carried, Secured},
};

/// A connection to the destination.
#[derive(Debug)]
pub struct Upstream {
    pub stream: Transport,
    pub address: SocketAddr,
    pub tls: Option<Arc<Secured>>,
    /// Counts as open work on the address while it is kept.
    pub load: Load,
}

/// Why no connection came about.
#[derive(Debug, Clone)]
pub struct ConnectError {
    pub reason: Reason,
    /// The address that failed last.
    pub address: Option<SocketAddr>,
    /// The operating system's or resolver's words.
    pub detail: Option<String>,
}

/// Dials the target's candidates one after the other until one answers. The connect timeout (the service's, or
/// the configuration's) bounds all attempts together; each gets a fair share of what is left.
pub async fn connect(
    context: &ConnectionContext,
    target: &Target,
) -> Result<Upstream, ConnectError> {
    let timeout = timeout(context, target);
    let deadline = Instant::now() + timeout;
    let mut last = ConnectError {
        reason: Reason::ConnectTimeout,
        address: None,
        detail: None,
    };
    let carried = match target.protocol {
        Protocol::Http => Carried::Http1,
        Protocol::Http2 => Carried::Http2,
        Protocol::Tcp if target.tls().is_some_and(|tls| tls.has_tunnels()) => Carried::Tunnel,
        Protocol::Auto | Protocol::Tcp => Carried::Bytes,
    };
    let attempts = async {
        let mut candidates = balance::candidates(&context.worker, target);
        let mut endpoints_left = target
            .service
            .as_ref()
            .map_or(1, |service| service.endpoints.len().max(1));
        loop {
            let candidate = match candidates.next().await {
                Ok(Some(candidate)) => candidate,
                Ok(None) => return None,
                Err(reason) => {
                    last = ConnectError {
                        reason,
                        address: None,
                        detail: candidates.resolve_error.take(),
                    };
                    return None;
                }
            };
            let share = share(
                deadline.saturating_duration_since(Instant::now()),
                endpoints_left,
            );
            endpoints_left = endpoints_left.saturating_sub(1).max(1);
            match open(context, target, candidate.address, carried, share).await {
                Ok(opened) => {
                    candidate.load.succeeded();
                    return Some(Upstream {
                        stream: opened.stream,
                        tls: opened.tls,
                        address: candidate.address,
                        load: candidate.load,
                    });
                }
                Err(error) => {
                    candidate.load.failed();
                    last = error;
                }
            }
        }
    };
    match tokio::time::timeout(timeout, attempts).await {
        Ok(Some(upstream)) => Ok(upstream),
        Ok(None) | Err(_) => Err(last),
    }
}

/// The time in which a connection for `target` must come about.
pub fn timeout(context: &ConnectionContext, target: &Target) -> Duration {
    target
        .service
        .as_ref()
        .map_or(context.snapshot.timeouts.connect, |service| {
            service.connect_timeout
        })
}

/// A connection to one address, encrypted where the target's service says so.
#[derive(Debug)]
pub struct Opened {
    pub stream: Transport,
    pub tls: Option<Arc<Secured>>,
}

/// One attempt at one address, within `timeout`: a connection of its own or, for [`Carried::Tunnel`], a share in one.
pub async fn open(
    context: &ConnectionContext,
    target: &Target,
    address: SocketAddr,
    carried: Carried,
    timeout: Duration,
) -> Result<Opened, ConnectError> {
    match carried {
        Carried::Tunnel => tunnel::open(context, target, address, timeout).await,
        carried => alone(context, target, address, carried, timeout).await,
    }
}

/// Dials and, where it is encrypted, shakes hands, both within `timeout`.
pub(super) async fn alone(
    context: &ConnectionContext,
    target: &Target,
    address: SocketAddr,
    carried: Carried,
    timeout: Duration,
) -> Result<Opened, ConnectError> {
    let deadline = Instant::now() + timeout;
    let tcp = dial(context, address, carried, timeout).await?;
    let Some(tls) = target.tls() else {
        return Ok(Opened {
            stream: tcp.into(),
            tls: None,
        });
    };
    let peer = tls::connect::Peer {
        tls,
        service: target.service.as_deref(),
        address,
    };
    Box::pin(tls::connect::connect(
        context, &peer, tcp, carried, deadline,
    ))
    .await
}

/// One attempt at one address.
async fn dial(
    context: &ConnectionContext,
    address: SocketAddr,
    carried: Carried,
    timeout: Duration,
) -> Result<TcpStream, ConnectError> {
    let dial = dial_unbounded(context, address, carried);
    let result = match tokio::time::timeout(timeout, dial).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    let outcome = result.as_ref().err().map(Reason::of_connect_error);
    context.recorder.dialled(outcome);
    result.map_err(|error| ConnectError {
        reason: Reason::of_connect_error(&error),
        address: Some(address),
        detail: Some(error.to_string()),
    })
}

const NOT_HANDED_OVER: &str = "the workload has too many connections under way for the application to be told the client's address";

async fn dial_unbounded(
    context: &ConnectionContext,
    address: SocketAddr,
    carried: Carried,
) -> io::Result<TcpStream> {
    // A connection that serves several clients has none of their ports; a tunnel tells them to the other side.
    let source = match carried {
        Carried::Bytes => context.source,
        Carried::Http1 | Carried::Http2 | Carried::Tunnel => context.source.shared(),
    };
    let lost = carried != Carried::Tunnel && context.source.has_port() && !source.has_port();
    let (socket, kept) = socket(&source, address)?;
    // The application shall see the real client. Without a kernel half it sees the proxy.
    let claimed = context.direction == Direction::Inbound
        && sockopt::claim_peer(&socket, context.peer).is_ok();
    let (connected, kept) = match socket.connect(address).await {
        // Another connection from there to there exists, or did a moment ago.
        Err(error) if source.has_port() && error.kind() == io::ErrorKind::AddrNotAvailable => {
            let (socket, _) = self::socket(&source.shared(), address)?;
            (socket.connect(address).await, false)
        }
        connected => (connected, kept),
    };
    if lost || !kept {
        context.recorder.source_port_lost();
    }
    let stream = connected?;
    // It may not be shown a false one where the kernel half has no room left.
    if claimed && sockopt::handover(&stream) == Handover::Failed {
        return Err(io::Error::other(NOT_HANDED_OVER));
    }
    Ok(stream)
}

/// A socket for a connection to `address`, bound as far as `source` says; and whether it has its port, if there is one.
fn socket(source: &Source, address: SocketAddr) -> io::Result<(TcpSocket, bool)> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    // For small messages.
    socket.set_nodelay(true)?;
    let kept = source.bind(&socket, address)?;
    Ok((socket, kept))
}

/// With several endpoints to try, a silent one may not use up the time of all: a third of what is left at
/// least, so that a single slow answer among many endpoints still has a chance.
pub fn share(left: Duration, endpoints_left: usize) -> Duration {
    left / u32::try_from(endpoints_left.clamp(1, 3)).unwrap_or(1)
}

impl From<Reason> for ConnectError {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            address: None,
            detail: None,
        }
    }
}

impl ConnectError {
    /// A failure of the client's socket.
    pub fn client(error: &io::Error) -> Self {
        Self {
            detail: Some(error.to_string()),
            ..Reason::ClientReset.into()
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)?;
        if let Some(address) = self.address {
            write!(f, " ({address})")?;
        }
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}
