//! Connect: a stream on a tunnel to the endpoint. Where there is none yet, it is made; an endpoint that takes none, because
//! its sidecar is older or because another address than the one dialled is its own, gets a connection as without tunnels.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::{self, SendRequest};
use http::{HeaderValue, Method, Request, StatusCode, Uri, Version};
use socket2::SockRef;

use super::{
    CLIENT_PORT, MAX_FRAME_BYTES, MAX_HEAD_BYTES, MAX_RESET_STREAMS, SEND_BUFFER_BYTES,
    TUNNEL_WINDOW_BYTES, TunnelStream,
    heart::Heart,
    pool::{Choice, Closed, Key, Making, Place},
    stream_window_bytes,
    wire::Wire,
};
use crate::{
    connection::{
        ConnectionContext, Reason, Transport,
        connect::{self, ConnectError, Opened},
        liveness,
        route::Target,
    },
    tls::{Carried, Secured, stream::TlsStream},
};

/// A stream to `address`, within `timeout`. It may be written to at once: whether the application is reached shows later,
/// as it does on a connection of its own.
pub(in crate::connection) async fn open(
    context: &ConnectionContext,
    target: &Target,
    address: SocketAddr,
    timeout: Duration,
) -> Result<Opened, ConnectError> {
    let deadline = Instant::now() + timeout;
    let left = || deadline.saturating_duration_since(Instant::now());
    loop {
        let missing = || ConnectError {
            address: Some(address),
            ..Reason::TlsIdentityMissing.into()
        };
        let key = Key::new(context, target, address).ok_or_else(missing)?;
        match context.worker.tunnels.choose(&key) {
            Choice::On(place) => match stream(place, context) {
                Some(opened) => return Ok(opened),
                // It was closed meanwhile, and is known as such from now on.
                None => continue,
            },
            Choice::Without => {
                let own = connect::alone(context, target, address, Carried::Bytes, left());
                return Box::pin(own).await;
            }
            Choice::Wait(made) => match tokio::time::timeout(left(), made.done()).await {
                Ok(result) => result?,
                Err(_) => return Err(timed_out(address)),
            },
            Choice::Make(making) => {
                let made = Box::pin(make(making, context, target, left())).await;
                if let Some(opened) = made? {
                    return Ok(opened);
                }
            }
        }
    }
}

/// Makes a tunnel and opens the first stream on it. `None`: the endpoint takes none after all.
async fn make(
    making: Making,
    context: &ConnectionContext,
    target: &Target,
    left: Duration,
) -> Result<Option<Opened>, ConnectError> {
    let address = making.key().address;
    let authority = uri(&address.to_string()).ok_or(unspeakable(address))?;
    let result = tokio::time::timeout(left, async {
        let opened = connect::alone(context, target, address, Carried::Tunnel, left).await?;
        let (tls, secured) = match opened {
            Opened {
                stream: Transport::Tls(tls),
                tls: Some(secured),
            } if secured.carried == Some(Carried::Tunnel) => (tls, secured),
            opened => return Ok(Reached::Own(opened)),
        };
        tunnel(*tls, secured, address, context).await
    });
    match result.await.unwrap_or_else(|_| Err(timed_out(address))) {
        Ok(Reached::Tunnel {
            sender,
            secured,
            closed,
        }) => {
            let idle_timeout = context.snapshot.timeouts.http_idle;
            let place = making.made(sender, secured, authority, closed, idle_timeout);
            Ok(stream(place, context))
        }
        Ok(Reached::Own(opened)) => {
            making.without();
            Ok(Some(opened))
        }
        Ok(Reached::Elsewhere) => {
            making.without();
            Ok(None)
        }
        Err(error) => {
            making.failed(&error);
            Err(error)
        }
    }
}

enum Reached {
    Tunnel {
        sender: SendRequest<Bytes>,
        secured: Arc<Secured>,
        closed: Closed,
    },
    /// The other side does not know tunnels; this connection is one connection's own.
    Own(Opened),
    /// The workload's address is another one than that dialled, so that the next connection may reach another workload:
    /// something on the way spreads connections.
    Elsewhere,
}

/// Begins HTTP/2, and asks whether streams to `address` would be taken.
async fn tunnel(
    tls: TlsStream,
    secured: Arc<Secured>,
    address: SocketAddr,
    context: &ConnectionContext,
) -> Result<Reached, ConnectError> {
    let timeouts = &context.snapshot.timeouts;
    let failed = |error: h2::Error| ConnectError {
        address: Some(address),
        detail: Some(format!("the tunnel could not be set up: {error}")),
        ..Reason::ConnectFailed.into()
    };
    // It lives long: a peer that vanishes must be noticed. This fails only on a socket that has failed.
    let _ = liveness::watch(&SockRef::from(tls.tcp()), timeouts);
    let wire = Wire::new(tls);
    let mut builder = client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(stream_window_bytes(&context.worker.buffers))
        .initial_connection_window_size(TUNNEL_WINDOW_BYTES)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_header_list_size(MAX_HEAD_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_concurrent_reset_streams(MAX_RESET_STREAMS)
        // What is still on its way when a client resets would count, and h2 never forgets it.
        .max_local_error_reset_streams(None);
    let (sender, connection) = builder
        .handshake::<_, Bytes>(wire.clone())
        .await
        .map_err(failed)?;
    let closed = Closed::default();
    let driver = drive(connection, wire, timeouts.keepalive, closed.clone());
    tokio::task::spawn_local(driver);
    let mut probe = Request::new(());
    *probe.method_mut() = Method::OPTIONS;
    *probe.uri_mut() = uri(&format!("https://{address}/")).ok_or(unspeakable(address))?;
    *probe.version_mut() = Version::HTTP_2;
    let mut sender = sender.ready().await.map_err(failed)?;
    let (answer, _) = sender.send_request(probe, true).map_err(failed)?;
    match answer.await.map_err(failed)?.status() {
        StatusCode::OK => Ok(Reached::Tunnel {
            sender,
            secured,
            closed,
        }),
        _ => Ok(Reached::Elsewhere),
    }
}

/// Moves a tunnel's frames until it ends: it breaks, or nobody holds a sender any more.
async fn drive(
    mut connection: client::Connection<Wire, Bytes>,
    wire: Wire,
    keepalive: Duration,
    closed: Closed,
) {
    let mut heart = Heart::new(connection.ping_pong(), keepalive);
    std::future::poll_fn(|cx| {
        // Errors reach the streams.
        if Pin::new(&mut connection).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if let Poll::Ready(Err(_)) = wire.poll_drain(cx) {
            return Poll::Ready(());
        }
        heart.poll_lost(cx, wire.received_bytes())
    })
    .await;
    closed.set();
}

/// `None`: the tunnel takes no more streams.
fn stream(place: Place, context: &ConnectionContext) -> Option<Opened> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = place.authority();
    *request.version_mut() = Version::HTTP_2;
    // Another one each time: not to be remembered by the header compression.
    let mut port = HeaderValue::from(context.peer.port());
    port.set_sensitive(true);
    request.headers_mut().insert(CLIENT_PORT, port);
    match place.sender().send_request(request, false) {
        Ok((response, send)) => {
            let tls = Some(place.tls().clone());
            let stream = TunnelStream::opened(response, send, place);
            Some(Opened {
                stream: Transport::Tunnel(Box::new(stream)),
                tls,
            })
        }
        Err(_) => {
            place.close();
            None
        }
    }
}

fn uri(text: &str) -> Option<Uri> {
    text.parse().ok()
}

/// An address is always one that a URI can have; said instead of a panic.
fn unspeakable(address: SocketAddr) -> ConnectError {
    ConnectError {
        address: Some(address),
        detail: Some("the address does not fit into a URI".to_owned()),
        ..Reason::ConnectFailed.into()
    }
}

fn timed_out(address: SocketAddr) -> ConnectError {
    ConnectError {
        address: Some(address),
        ..Reason::ConnectTimeout.into()
    }
}
