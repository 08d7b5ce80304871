//! One connection, from accept to its record: accept, origin, authorise, route, balance, connect, relay, record.

pub mod accept;
pub mod authorise;
pub mod balance;
pub mod buffers;
pub mod connect;
pub mod detect;
pub mod doubt;
mod fine_timer;
pub mod listen;
pub(crate) mod liveness;
pub mod origin;
pub mod outcome;
pub mod record;
pub mod relay;
pub mod resolve;
pub mod route;
mod send_window;
pub mod source;
pub mod stream;
pub(crate) mod sweep;
pub mod transport;
pub mod tunnel;
mod worker;

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use bytes::Bytes;
pub use doubt::{Doubt, Doubts};
pub use outcome::{Ended, Outcome, Reason};
pub use record::{ConnectionRecord, Recorder, RequestRecord};
pub use source::Source;
pub use stream::Stream;
pub use transport::{Transport, Unserved};
pub use worker::{Shared, Worker};

use self::{
    accept::Accepted,
    connect::{ConnectError, Upstream},
    detect::Detected,
    route::Target,
};
use crate::{
    http,
    identity::SpiffeId,
    lifecycle::drain::{DrainSignal, Guard},
    model::{Protocol, Snapshot},
    tls::{self, Carried, Secured},
};

/// Which way a connection goes, seen from the workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the workload.
    Inbound,
    /// From the workload.
    Outbound,
}

/// What every step after accept may know of its connection. Lives as long as the connection, on its worker.
#[derive(Debug)]
pub struct ConnectionContext {
    /// The configuration in force when the connection was accepted; kept to its end.
    pub snapshot: Arc<Snapshot>,
    pub direction: Direction,
    /// The client: for inbound connections the real one.
    pub peer: SocketAddr,
    /// The address that the client asked for; `None` if it dialled the outbound listener itself, which makes
    /// it a client of the explicit HTTP proxy. v4-mapped addresses are given as IPv4.
    pub original: Option<SocketAddr>,
    /// What the steered application has bound its socket to.
    pub source: Source,
    /// Who the client has proved to be; `None` on a plaintext connection.
    pub peer_identity: Option<SpiffeId>,
    /// The client's TLS, where the sidecar ends it.
    pub tls: Option<Arc<Secured>>,
    pub recorder: Recorder,
    pub drain: DrainSignal,
    /// State shared by the connections of one worker.
    pub worker: Rc<Worker>,
    /// Keeps a drain waiting for this connection.
    pub guard: Guard,
}

/// Serves one accepted connection and records how it ended. Dropped in between, it resets what is open, and
/// records that.
pub async fn serve(accepted: Accepted, worker: Rc<Worker>) {
    let mut record = worker
        .recorder
        .connection(accepted.direction, accepted.peer);
    let result = steps(accepted, &worker, &mut record).await;
    record.conclude(result);
}

/// The steps between accept and record. An error resets the client.
async fn steps(
    accepted: Accepted,
    worker: &Rc<Worker>,
    record: &mut ConnectionRecord,
) -> Result<Ended, ConnectError> {
    // Boxed: the future keeps the place of what is moved out of it.
    let mut context = Box::new(origin::origin(&accepted, worker)?);
    record.destination = context.original;
    let Accepted {
        client,
        place: _place,
        ..
    } = accepted;
    let client = tls::accept::accept(client, &mut context).await?;
    record.client_tls = context.tls.clone();
    if let Some(Carried::Tunnel) = context.tls.as_ref().and_then(|tls| tls.carried) {
        return Box::pin(tunnel::serve(client, *context, record)).await;
    }
    carry(client, Rc::from(context), record).await
}

/// The steps from authorise on, of a connection whose client and destination are known: accepted here, or a stream of a
/// tunnel. `context` is shared, as a future holds what is moved into it more than once.
async fn carry(
    mut client: Unserved,
    context: Rc<ConnectionContext>,
    record: &mut ConnectionRecord,
) -> Result<Ended, ConnectError> {
    authorise::authorise(&context, record)?;
    let Some(target) = route::route(&context) else {
        // The explicit proxy: its requests name where they go.
        return http(client, Bytes::new(), None, None, context, record).await;
    };
    record.service = target.service.as_ref().map(|service| service.name.clone());
    // The larger futures are boxed, so that a connection in its relay, where it spends its life, is small.
    let of_bytes = authorise::OfBytes::new(&context);
    let (prefix, upstream) = match target.protocol {
        // Nothing is dialled; requests may pass, or at least get an answer.
        Protocol::Auto if of_bytes.is_denied() => {
            let patience = of_bytes.patience(&context);
            let Some(prefix) = Box::pin(detect::asks_http(&mut client, &context, patience)).await?
            else {
                of_bytes.enforce(record)?;
                return Err(Reason::PolicyDenied.into());
            };
            return http(client, prefix, None, Some(target), context, record).await;
        }
        // Balance and connect, while the client is heard.
        Protocol::Auto => match Box::pin(detect::detect(&mut client, &target, &context)).await? {
            Detected::Tcp { prefix, upstream } => {
                of_bytes.enforce(record)?;
                (prefix, upstream)
            }
            Detected::Http { prefix, upstream } => {
                return http(client, prefix, upstream, Some(target), context, record).await;
            }
        },
        Protocol::Tcp => {
            of_bytes.enforce(record)?;
            let upstream = Box::pin(connect::connect(&context, &target)).await?;
            (Bytes::new(), upstream)
        }
        Protocol::Http | Protocol::Http2 => {
            return http(client, Bytes::new(), None, Some(target), context, record).await;
        }
    };
    record.upstream = Some(upstream.address);
    record.upstream_tls = upstream.tls;
    let client = client
        .serve(prefix)
        .map_err(|error| ConnectError::client(&error))?;
    let settings = relay::Settings::of(&context.snapshot);
    Ok(relay::relay(client, upstream.stream, &context.worker.buffers, settings).await)
}

/// Route, balance, connect, relay and record, each request for itself.
async fn http(
    client: Unserved,
    prefix: Bytes,
    upstream: Option<Upstream>,
    target: Option<Target>,
    context: Rc<ConnectionContext>,
    record: &mut ConnectionRecord,
) -> Result<Ended, ConnectError> {
    record.protocol = "http";
    let client = client
        .serve(prefix)
        .map_err(|error| ConnectError::client(&error))?;
    Ok(Box::pin(http::serve(client, upstream, target, context)).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_is_small() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
        let client = Unserved::new(client.await.unwrap());
        let worker = Rc::new(Worker::for_tests());
        let place = worker.places.take(Some(1)).unwrap();
        let accepted = Accepted {
            client,
            direction: Direction::Outbound,
            peer: listener.local_addr().unwrap(),
            snapshot: worker.snapshot.load(),
            place,
        };
        let future = serve(accepted, worker);
        assert!(
            size_of_val(&future) < 2048,
            "{} bytes",
            size_of_val(&future)
        );
    }
}
