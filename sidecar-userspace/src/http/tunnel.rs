//! Tunnels: what follows CONNECT and an accepted request to upgrade is bytes, relayed as any TCP connection.

use std::rc::Rc;

use bytes::Bytes;
use http::Response;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::{
    body::ResponseBody, client::Lease, exchange::Exchange, refusal::Refusal, session::Session,
    upstream_io::UpstreamIo,
};
use crate::{
    connection::{
        Reason, Transport,
        connect::{self, Upstream},
        relay,
        route::Target,
    },
    lifecycle::drain::Phase,
};

/// Waits for the client's connection to have written its last response.
pub(super) struct Tunnel {
    far: Far,
    exchange: Rc<Exchange>,
}

enum Far {
    /// Upstream has switched the protocol.
    Upgraded(OnUpgrade, Lease),
    /// Dialled for CONNECT.
    Dialled(Upstream),
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").finish_non_exhaustive()
    }
}

/// CONNECT to the explicit proxy.
pub(super) async fn connect(
    session: &Session,
    exchange: &Rc<Exchange>,
    target: &Target,
) -> Result<Response<ResponseBody>, Refusal> {
    let upstream = connect::connect(&session.context, target).await?;
    exchange.note(|record| {
        record.upstream = Some(upstream.address);
        record.upstream_tls = upstream.tls.clone();
    });
    let response = Response::new(ResponseBody::empty());
    exchange.head(response.status());
    *session.tunnel.borrow_mut() = Some(Tunnel {
        far: Far::Dialled(upstream),
        exchange: exchange.clone(),
    });
    Ok(response)
}

impl Tunnel {
    pub fn upgraded(upgrade: OnUpgrade, exchange: &Rc<Exchange>, lease: Lease) -> Self {
        Self {
            far: Far::Upgraded(upgrade, lease),
            exchange: exchange.clone(),
        }
    }

    /// Relays until both sides have ended. `ahead`: what the client sent behind its request.
    pub async fn run(self, session: &Session, client: Transport, ahead: Bytes) {
        let client = client.prepend(ahead);
        // The lease or load counts as work on the endpoint until the tunnel's end.
        let (stream, _lease, _load) = match self.far {
            Far::Dialled(upstream) => (Ok(upstream.stream), None, Some(upstream.load)),
            Far::Upgraded(upgrade, lease) => (upgraded(upgrade).await, Some(lease), None),
        };
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                client.reset();
                self.exchange.end(Reason::UpgradeFailed, Some(error));
                return;
            }
        };
        let context = &session.context;
        let settings = relay::Settings::of(&context.snapshot);
        tokio::select! {
            ended = relay::relay(client, stream, &context.worker.buffers, settings) => {
                self.exchange.count_tunnel(ended.client_bytes, ended.upstream_bytes);
                self.exchange.end(ended.outcome, ended.detail);
            }
            // The relay resets both sides when it is dropped.
            () = context.drain.reached(Phase::Ended) => {
                self.exchange.end(Reason::DrainDeadline, None);
            }
        }
    }
}

async fn upgraded(upgrade: OnUpgrade) -> Result<Transport, String> {
    let upgraded = upgrade.await.map_err(|error| error.to_string())?;
    let parts = upgraded
        .downcast::<TokioIo<UpstreamIo>>()
        .map_err(|_| "not a connection of this proxy's".to_owned())?;
    let stream = parts.io.into_inner().into_stream();
    Ok(stream.prepend(parts.read_buf))
}
