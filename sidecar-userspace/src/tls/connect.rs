//! Connect: the handshake with an endpoint.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{HandshakeKind, pki_types::ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client};

use super::{
    Carried, Secured, accept::failed, failure, mesh::WRITE_BUFFER_BYTES, stream::TlsStream, verify,
    version_name,
};
use crate::{
    connection::{
        ConnectionContext, Reason, Stream, Transport,
        connect::{ConnectError, Opened},
    },
    model::{Origin, Service, ServiceTls},
};

/// Whom the handshake is with.
#[derive(Debug)]
pub struct Peer<'a> {
    pub tls: &'a ServiceTls,
    pub service: Option<&'a Service>,
    pub address: SocketAddr,
}

/// Encrypts a connection that was just made. Until `deadline`, beyond which it is reset.
pub async fn connect(
    context: &ConnectionContext,
    peer: &Peer<'_>,
    tcp: TcpStream,
    carried: Carried,
    deadline: Instant,
) -> Result<Opened, ConnectError> {
    let left = deadline.saturating_duration_since(Instant::now());
    let result = shake_hands(context, peer, tcp, carried, left).await;
    let direction = context.direction;
    match result {
        Ok((stream, secured)) => {
            context.recorder.handshake(direction, Ok(&secured));
            Ok(Opened {
                stream: Transport::Tls(Box::new(stream)),
                tls: Some(Arc::new(secured)),
            })
        }
        Err(error) => {
            context.recorder.handshake(direction, Err(error.reason));
            Err(error)
        }
    }
}

async fn shake_hands(
    context: &ConnectionContext,
    peer: &Peer<'_>,
    tcp: TcpStream,
    carried: Carried,
    left: Duration,
) -> Result<(TlsStream, Secured), ConnectError> {
    let address = Some(peer.address);
    let bad = |reason: Reason, detail: String| ConnectError {
        reason,
        address,
        detail: Some(detail),
    };
    let config = match peer.tls {
        ServiceTls::Mesh { identities, .. } => {
            let mesh = context.worker.mesh.as_ref().and_then(|mesh| mesh.load());
            let mesh = mesh.ok_or(ConnectError {
                address,
                ..Reason::TlsIdentityMissing.into()
            })?;
            mesh.client(identities, carried)
                .map_err(|error| bad(failure::of_rustls(&error), error.to_string()))?
        }
        ServiceTls::Origin(origin) => {
            let origins = &context.worker.origins;
            origins
                .client(origin, carried)
                .map_err(|error| bad(Reason::TlsFiles, error.to_string()))?
        }
    };
    let in_mesh = matches!(peer.tls, ServiceTls::Mesh { .. });
    let bounded = |connection: &mut rustls::ClientConnection| {
        connection.set_buffer_limit(Some(WRITE_BUFFER_BYTES));
    };
    let mut handshake =
        TlsConnector::from(config).connect_with(peer.name(), Stream::new(tcp), bounded);
    match timeout(left, &mut handshake).await {
        Ok(Ok(stream)) => match facts(&stream, in_mesh) {
            Ok(secured) => Ok((TlsStream::new(stream.into()), secured)),
            Err(error) => Err(bad(failure::of_rustls(&error), error.to_string())),
        },
        // Closed, not reset: the alert that says why is on its way.
        Ok(Err(error)) => Err(failed(&error, address)),
        Err(_) => {
            if let Some(stream) = handshake.get_mut() {
                // Fails only on a socket that is gone already.
                let _ = stream.tcp().set_zero_linger();
            }
            Err(ConnectError {
                address,
                ..Reason::TlsHandshakeTimeout.into()
            })
        }
    }
}

fn facts(stream: &client::TlsStream<Stream>, in_mesh: bool) -> Result<Secured, rustls::Error> {
    let connection = stream.get_ref().1;
    let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
    Ok(Secured {
        version: version_name(connection.protocol_version()),
        peer: match in_mesh {
            true => Some(verify::peer(connection.peer_certificates(), resumed)?),
            false => None,
        },
        resumed,
        carried: connection.alpn_protocol().and_then(Carried::of_alpn),
    })
}

impl Peer<'_> {
    /// What is said as SNI and, outside the mesh, expected in the server's certificate; also what sessions are remembered by: the service's first host, else the address.
    fn name(&self) -> ServerName<'static> {
        if let ServiceTls::Origin(Origin { sni: Some(sni), .. }) = self.tls
            && let Ok(name) = ServerName::try_from(sni.clone())
        {
            return name;
        }
        let hosts = self.service.map(|service| service.hosts.as_slice());
        let host = hosts.and_then(|hosts| hosts.first());
        host.and_then(|host| ServerName::try_from(host.clone()).ok())
            .unwrap_or_else(|| ServerName::from(self.address.ip()))
    }
}
