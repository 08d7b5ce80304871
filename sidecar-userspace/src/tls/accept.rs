//! Accept: the handshake of a connection to the workload, or the proof that there is none.
//!
//! A TLS client speaks first, and at once: its first bytes tell. A permissive port waits for them for 300 ms
//! only, as the client of a protocol in which the server speaks first says nothing; whoever was silent so long is
//! plaintext.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use rustls::HandshakeKind;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server};

use super::{
    Carried, Secured, failure,
    hello::{self, First},
    mesh::WRITE_BUFFER_BYTES,
    stream::TlsStream,
    verify, version_name,
};
use crate::{
    connection::{
        ConnectionContext, Direction, Reason, Stream, Transport, Unserved, connect::ConnectError,
        stream,
    },
    model::{Mtls, Protocol},
};

/// Longer than a ClientHello that was lost once takes to come again.
const SILENCE: Duration = Duration::from_millis(300);

/// The alert protocol_version, fatal, as TLS 1.0 has it. The library says something else to clients so old.
const PROTOCOL_VERSION: &[u8] = &[21, 3, 1, 0, 2, 2, 70];

/// The client's stream behind its TLS, if the port has any. Fills in who the client is. An error has told the client
/// what was wrong, if it speaks TLS.
pub async fn accept(
    client: Unserved,
    context: &mut ConnectionContext,
) -> Result<Unserved, ConnectError> {
    let (Direction::Inbound, Some(original)) = (context.direction, context.original) else {
        return Ok(client);
    };
    let mode = context.snapshot.inbound.mtls(original.port());
    if mode == Mtls::Disable {
        context.recorder.secured("none");
        return Ok(client);
    }
    // The larger future is boxed: most of a connection's life comes after it.
    let result = Box::pin(decide(client, mode, context)).await;
    match result {
        Ok((client, None)) => {
            context.recorder.secured("none");
            Ok(client)
        }
        Ok((client, Some(secured))) => {
            // The connections in a tunnel count each for itself.
            if secured.carried != Some(Carried::Tunnel) {
                context.recorder.secured("mutual_tls");
            }
            context.recorder.handshake(Direction::Inbound, Ok(&secured));
            context.peer_identity = secured.peer.clone();
            context.tls = Some(Arc::new(secured));
            Ok(client)
        }
        Err(error) => {
            context
                .recorder
                .handshake(Direction::Inbound, Err(error.reason));
            Err(error)
        }
    }
}

async fn decide(
    client: Unserved,
    mode: Mtls,
    context: &ConnectionContext,
) -> Result<(Unserved, Option<Secured>), ConnectError> {
    let deadline = Instant::now() + context.snapshot.timeouts.tls_handshake;
    let mut said = BytesMut::new();
    let tcp = client.tcp().map_err(|error| ConnectError::client(&error))?;
    let first = first(tcp, mode, &mut said, deadline).await?;
    let encrypted = match (mode, first) {
        (_, First::Mesh) | (Mtls::Strict, First::OtherTls) => true,
        (Mtls::Strict, First::Outdated) => {
            // A fresh socket takes seven bytes; if not, the client is told nothing.
            let _ = tcp.try_write(PROTOCOL_VERSION);
            if let Ok(transport) = client.serve(said.freeze()) {
                // Closed, not reset: the alert is on its way.
                drop(transport);
            }
            return Err(Reason::TlsVersion.into());
        }
        (Mtls::Strict, _) => return Err(Reason::TlsPlaintextRefused.into()),
        // The application may have a TLS of its own, which its client asks for.
        _ => false,
    };
    let transport = client
        .serve(said.freeze())
        .map_err(|error| ConnectError::client(&error))?;
    if !encrypted {
        return Ok((transport.into(), None));
    }
    let Transport::Tcp(stream) = transport else {
        return Err(Reason::TlsHandshakeFailed.into());
    };
    let (stream, secured) = shake_hands(stream, context, deadline).await?;
    Ok((Transport::Tls(Box::new(stream)).into(), Some(secured)))
}

/// What the client's first bytes, which are left in `said`, tell.
async fn first(
    tcp: &TcpStream,
    mode: Mtls,
    said: &mut BytesMut,
    deadline: Instant,
) -> Result<First, ConnectError> {
    let look = async {
        loop {
            let silent = said.is_empty();
            let more = read_more(tcp, said);
            let read = match (mode, silent) {
                (Mtls::Permissive, true) => match timeout(SILENCE, more).await {
                    Ok(read) => read?,
                    Err(_) => return Ok(First::Plaintext),
                },
                _ => more.await?,
            };
            match hello::first(said) {
                _ if read == 0 && mode == Mtls::Permissive => return Ok(First::Plaintext),
                _ if read == 0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                First::Incomplete => {}
                decided => return Ok(decided),
            }
        }
    };
    match timeout_at(deadline, look).await {
        Ok(Ok(first)) => Ok(first),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Err(ConnectError {
            detail: Some("the client ended the connection before its handshake".to_owned()),
            ..Reason::TlsHandshakeFailed.into()
        }),
        Ok(Err(error)) => Err(ConnectError::client(&error)),
        Err(_) => Err(Reason::TlsHandshakeTimeout.into()),
    }
}

/// Appends what the client has sent; 0: it ended.
async fn read_more(tcp: &TcpStream, said: &mut BytesMut) -> io::Result<usize> {
    loop {
        tcp.readable().await?;
        let mut space = [0; 2048];
        let room = hello::MAX_BYTES
            .saturating_sub(said.len())
            .clamp(1, space.len());
        match tcp.try_read(space.get_mut(..room).unwrap_or_default()) {
            Ok(read) => {
                said.extend_from_slice(space.get(..read).unwrap_or_default());
                return Ok(read);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn shake_hands(
    stream: Stream,
    context: &ConnectionContext,
    deadline: Instant,
) -> Result<(TlsStream, Secured), ConnectError> {
    let mesh = context.worker.mesh.as_ref().and_then(|mesh| mesh.load());
    let Some(mesh) = mesh else {
        stream.reset();
        return Err(Reason::TlsIdentityMissing.into());
    };
    let bounded = |connection: &mut rustls::ServerConnection| {
        connection.set_buffer_limit(Some(WRITE_BUFFER_BYTES));
    };
    let original = context.original.map_or(0, |original| original.port());
    let declared = context.snapshot.inbound.ports.get(&original);
    let http2 = declared.is_some_and(|port| port.protocol == Protocol::Http2);
    let server = if http2 {
        &mesh.http2_server
    } else {
        &mesh.server
    };
    let mut handshake = TlsAcceptor::from(server.clone()).accept_with(stream, bounded);
    match timeout_at(deadline, &mut handshake).await {
        Ok(Ok(stream)) => match facts(&stream) {
            Ok(secured) => Ok((TlsStream::new(stream.into()), secured)),
            Err(error) => {
                stream::reset(stream.into_inner().0.into_tcp());
                Err(ConnectError {
                    detail: Some(error.to_string()),
                    ..failure::of_rustls(&error).into()
                })
            }
        },
        // Closed, not reset: the alert that says why is on its way.
        Ok(Err(error)) => Err(failed(&error, None)),
        Err(_) => {
            if let Some(stream) = handshake.get_mut() {
                // Fails only on a socket that is gone already.
                let _ = stream.tcp().set_zero_linger();
            }
            Err(Reason::TlsHandshakeTimeout.into())
        }
    }
}

fn facts(stream: &server::TlsStream<Stream>) -> Result<Secured, rustls::Error> {
    let connection = stream.get_ref().1;
    let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
    Ok(Secured {
        version: version_name(connection.protocol_version()),
        peer: Some(verify::peer(connection.peer_certificates(), resumed)?),
        resumed,
        carried: connection.alpn_protocol().and_then(Carried::of_alpn),
    })
}

/// The failure of a handshake with the client, or with the endpoint at `address`.
pub(super) fn failed(error: &io::Error, address: Option<SocketAddr>) -> ConnectError {
    let reason = match failure::reason(error) {
        Some(reason) => reason,
        None if address.is_none() && error.kind() == io::ErrorKind::ConnectionReset => {
            Reason::ClientReset
        }
        None => Reason::TlsHandshakeFailed,
    };
    ConnectError {
        reason,
        address,
        detail: Some(error.to_string()),
    }
}
