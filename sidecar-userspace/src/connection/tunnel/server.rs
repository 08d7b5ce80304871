//! Accept: a tunnel from another sidecar. Each of its streams is a connection to the workload, with steps, place and
//! record of its own.

use std::{
    cell::Cell,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Reason as H2Reason, RecvStream,
    server::{self, SendResponse},
};
use http::{Method, Request, Response, StatusCode};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::{
    CLIENT_PORT, MAX_AGE, MAX_FRAME_BYTES, MAX_HEAD_BYTES, MAX_RESET_STREAMS, MAX_STRAY_FRAMES,
    MAX_STREAMS, SEND_BUFFER_BYTES, TUNNEL_WINDOW_BYTES, TunnelStream, heart::Heart,
    stream_window_bytes, wire::Wire,
};
use crate::{
    connection::{
        self, ConnectionContext, ConnectionRecord, Direction, Ended, Outcome, Reason, Source,
        Transport, Unserved, connect::ConnectError, origin::canonical,
    },
    lifecycle::drain::Phase,
    model::Mtls,
};

/// What the streams of one tunnel share.
struct Tunnel {
    /// Of the tunnel itself: who its other side is, and where it arrived.
    context: ConnectionContext,
    /// The only destination that its streams have.
    original: SocketAddr,
    /// The socket's own address: another one than `original` where NAT has brought the tunnel to the listener.
    local: Option<SocketAddr>,
    open: Cell<usize>,
    /// Streams, so far.
    streams: Cell<u64>,
}

/// Serves a tunnel to its end. What becomes of its streams is in their own records.
pub async fn serve(
    client: Unserved,
    context: ConnectionContext,
    record: &mut ConnectionRecord,
) -> Result<Ended, ConnectError> {
    record.protocol = "tunnel";
    let client = client
        .serve(Bytes::new())
        .map_err(|error| ConnectError::client(&error))?;
    let (Transport::Tls(tls), Some(original)) = (client, context.original) else {
        return Err(Reason::TlsHandshakeFailed.into());
    };
    let local = tls.tcp().local_addr().ok().map(canonical);
    let wire = Wire::new(*tls);
    let patience = context.snapshot.timeouts.tls_handshake;
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(MAX_STREAMS)
        // A peer that takes streams back before they were looked at.
        .max_pending_accept_reset_streams(MAX_STREAMS as usize)
        .initial_window_size(stream_window_bytes(&context.worker.buffers))
        .initial_connection_window_size(TUNNEL_WINDOW_BYTES)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_header_list_size(MAX_HEAD_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_concurrent_reset_streams(MAX_RESET_STREAMS)
        .max_local_error_reset_streams(Some(MAX_STRAY_FRAMES));
    let connection = match timeout(patience, builder.handshake(wire.clone())).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return Err(bad(&error)),
        Err(_) => return Err(Reason::TlsHandshakeTimeout.into()),
    };
    let tunnel = Rc::new(Tunnel {
        context,
        original,
        local,
        open: Cell::new(0),
        streams: Cell::new(0),
    });
    let outcome = tunnel.drive(connection, wire).await;
    outcome.map(|()| Ended {
        outcome: Outcome::Success,
        client_bytes: 0,
        upstream_bytes: 0,
        detail: None,
    })
}

impl Tunnel {
    async fn drive(
        self: Rc<Self>,
        mut connection: server::Connection<Wire, Bytes>,
        wire: Wire,
    ) -> Result<(), ConnectError> {
        let timeouts = &self.context.snapshot.timeouts;
        let mut heart = Heart::new(connection.ping_pong(), timeouts.keepalive);
        let mut unused = Unused::new(timeouts.http_idle);
        // A sidecar that is leaving still takes connections; a tunnel that comes so late stays as long as they do.
        let late = self.context.drain.is_draining();
        let mut leave = pin!(self.leave(late));
        let mut leaving = false;
        std::future::poll_fn(|cx| {
            loop {
                match connection.poll_accept(cx) {
                    Poll::Ready(Some(Ok((request, respond)))) => {
                        if !self.begin(request, respond) && !leaving {
                            leaving = true;
                            connection.graceful_shutdown();
                        }
                        continue;
                    }
                    Poll::Ready(Some(Err(error))) if error.is_io() => return Poll::Ready(Ok(())),
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(bad(&error))),
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => {}
                }
                let spent = late && self.streams.get() > 0 && self.open.get() == 0;
                if !leaving
                    && (spent
                        || leave.as_mut().poll(cx).is_ready()
                        || unused.poll(cx, &self).is_ready())
                {
                    leaving = true;
                    connection.graceful_shutdown();
                    continue;
                }
                break;
            }
            if let Poll::Ready(Err(_)) = wire.poll_drain(cx) {
                return Poll::Ready(Ok(()));
            }
            match heart.poll_lost(cx, wire.received_bytes()) {
                Poll::Ready(()) => Poll::Ready(Err(Reason::ClientLost.into())),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Until the tunnel shall take no more streams: the sidecar is leaving, or what handshakes are made with has changed,
    /// and the next one is to say whether the other side is still believed.
    async fn leave(&self, late: bool) {
        let mesh = self.context.worker.mesh.as_ref();
        let mut states = mesh.map(|mesh| mesh.subscribe());
        let changed = async {
            match &mut states {
                Some(states) => states.changed().await.is_ok(),
                None => false,
            }
        };
        tokio::select! {
            () = self.context.drain.reached(Phase::Draining), if !late => {}
            // Else there will be no other state.
            true = changed => {}
            else => std::future::pending().await,
        }
    }

    /// Starts what a request asks for. `false`: there shall be no more.
    fn begin(
        self: &Rc<Self>,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> bool {
        let fits = self.is_here(&request);
        if request.method() == Method::OPTIONS {
            let status = match fits {
                true => StatusCode::OK,
                false => StatusCode::MISDIRECTED_REQUEST,
            };
            answer(&mut respond, status);
            return true;
        }
        let worker = &self.context.worker;
        let snapshot = worker.snapshot.load();
        // Else a reload has left TLS to the application: the next connection shall find that out.
        let more = snapshot.inbound.mtls(self.original.port()) != Mtls::Disable;
        let mut record = worker
            .recorder
            .connection(Direction::Inbound, self.client(&request));
        record.client_tls = self.context.tls.clone();
        if request.method() != Method::CONNECT || !fits {
            let asked = request.uri().authority().map_or("", |asked| asked.as_str());
            let asked: String = asked.chars().take(80).collect();
            record.detail = Some(format!("{} {asked:?}", request.method()));
            record.destination = Some(self.original);
            record.end(Reason::TunnelRefused);
            answer(&mut respond, StatusCode::MISDIRECTED_REQUEST);
            return more;
        }
        record.destination = Some(self.original);
        let place = match worker.places.take(snapshot.limits.connections) {
            Ok(place) => place,
            Err(reason) => {
                record.end(reason);
                respond.send_reset(H2Reason::CONNECT_ERROR);
                return more;
            }
        };
        worker.recorder.secured("mutual_tls");
        self.streams.set(self.streams.get() + 1);
        self.open.set(self.open.get() + 1);
        let open = Open(self.clone());
        let context = ConnectionContext {
            snapshot,
            direction: Direction::Inbound,
            peer: record.peer,
            original: Some(self.original),
            source: Source::default(),
            peer_identity: self.context.peer_identity.clone(),
            tls: self.context.tls.clone(),
            recorder: worker.recorder.clone(),
            drain: worker.drain.clone(),
            worker: worker.clone(),
            guard: worker.drain.guard(),
        };
        let stream = TunnelStream::accepted(request.into_body(), respond);
        let client = Unserved::from(Transport::Tunnel(Box::new(stream)));
        tokio::task::spawn_local(async move {
            let _held = (open, place);
            let result = connection::carry(client, Rc::new(context), &mut record).await;
            record.conclude(result);
        });
        more
    }

    /// Whether the request is for where the tunnel arrived.
    fn is_here(&self, request: &Request<RecvStream>) -> bool {
        let asked = request.uri().authority();
        let asked = asked.and_then(|asked| asked.as_str().parse::<SocketAddr>().ok());
        let asked = asked.map(canonical);
        asked.is_some() && (asked == Some(self.original) || asked == self.local)
    }

    /// The client's address. The other sidecar is believed its port only.
    fn client(&self, request: &Request<RecvStream>) -> SocketAddr {
        let peer = self.context.peer;
        let port = request.headers().get(CLIENT_PORT);
        let port = port.and_then(|port| port.to_str().ok()?.parse().ok());
        SocketAddr::new(peer.ip(), port.unwrap_or(peer.port()))
    }
}

/// Counts as a stream until dropped.
struct Open(Rc<Tunnel>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get().saturating_sub(1));
    }
}

/// Ready when a tunnel has had no stream for the idle time, or twice that at most, or is so old that its other side should
/// have left it long ago.
struct Unused {
    idle: Duration,
    timer: Pin<Box<Sleep>>,
    made_at: Instant,
    /// When the timer was set.
    streams: u64,
}

impl Unused {
    fn new(idle: Duration) -> Self {
        Self {
            idle,
            timer: Box::pin(sleep(idle)),
            made_at: Instant::now(),
            streams: 0,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, tunnel: &Tunnel) -> Poll<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let streams = tunnel.streams.get();
            let unused = tunnel.open.get() == 0 && streams == self.streams;
            if unused || self.made_at.elapsed() > MAX_AGE * 2 {
                return Poll::Ready(());
            }
            self.streams = streams;
            let wait = self.idle.max(Duration::from_millis(1));
            self.timer.as_mut().reset(Instant::now() + wait);
        }
        Poll::Pending
    }
}

fn answer(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    // Fails on a stream that was reset meanwhile.
    let _ = respond.send_response(response, true);
}

fn bad(error: &h2::Error) -> ConnectError {
    ConnectError {
        detail: Some(error.to_string()),
        ..Reason::BadRequest.into()
    }
}
