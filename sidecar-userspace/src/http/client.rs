//! Balance and connect for requests: a kept connection to the chosen endpoint, or a new one; sent again only
//! where that cannot do anything twice.

use std::{
    cell::Cell,
    error::Error as _,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Method, Request, Response};
use http_body::Body;
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;

use super::{
    body::RequestBody,
    exchange::{upstream_reason, words},
    executor::LocalExecutor,
    pool::{Http1, Http2Choice, Key, Place},
    session::Session,
    upstream_io::UpstreamIo,
};
use crate::connection::{
    Reason, Worker,
    balance::{self, Load},
    connect::{self, ConnectError, Opened},
    liveness,
    route::Target,
};
use crate::tls::{Carried, Secured};

/// What one HTTP/2 stream may have under way.
pub(super) const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// And all streams of a connection together: each its own window, so that none waits for another's reader. h2 also
/// derives from it how much it spends on holding frames of a few bytes (half of it, 256 bytes a frame), and closes the
/// connection with ENHANCE_YOUR_CALM beyond that: streams of small gRPC messages must be able to wait for slow readers.
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 256 * STREAM_WINDOW_BYTES;
/// Streams that were given up and are remembered for a moment, because more of them may be on its way.
const MAX_RESET_STREAMS: usize = 1024;
/// An HTTP/2 peer has this long to answer a ping.
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A request that no connection took is offered again this often.
const MAX_UNSENT_ATTEMPTS: u8 = 3;
/// hyper refuses a smaller buffer.
const MIN_BUFFER_BYTES: usize = 8192;

/// A response, and what holds its connection.
pub(super) struct Sent {
    pub response: Response<Incoming>,
    pub address: SocketAddr,
    pub lease: Lease,
}

/// A connection to upstream that one request uses.
pub(super) struct Lease {
    worker: Rc<Worker>,
    key: Key,
    connection: Connection,
    max_idle: usize,
    idle_timeout: Duration,
    _load: Load,
}

enum Connection {
    Http1(Http1),
    /// Held for its place.
    Http2(Place),
}

impl Lease {
    /// Of the connection that took the request.
    pub fn tls(&self) -> Option<&Arc<Secured>> {
        match &self.connection {
            Connection::Http1(connection) => connection.tls.as_ref(),
            Connection::Http2(place) => place.tls(),
        }
    }

    /// The response is complete: the connection may take the next request.
    pub fn give_back(self) {
        if let Connection::Http1(kept) = self.connection {
            if let Some(doubt) = &kept.doubt {
                doubt.message_done();
            }
            let (max_idle, idle_timeout) = (self.max_idle, self.idle_timeout);
            self.worker
                .http
                .put_http1(self.key, kept, max_idle, idle_timeout);
        }
    }
}

/// Sends `request` to one of `target`'s endpoints and gives the response's head.
///
/// Endpoints that cannot be reached are passed over, as nothing was sent. On a kept connection that turns out
/// to be dead the request is sent once more on a new one: always if it was not written, else only if it is
/// idempotent and has no body.
pub(super) async fn send(
    session: &Session,
    target: &Target,
    http2: bool,
    mut request: Request<RequestBody>,
) -> Result<Sent, ConnectError> {
    let context = &session.context;
    let mut candidates = balance::candidates(&context.worker, target);
    let mut last = None;
    let deadline = Cell::new(None);
    loop {
        let candidate = match candidates.next().await {
            Ok(Some(candidate)) => candidate,
            Ok(None) => return Err(last.unwrap_or_else(no_endpoint)),
            Err(reason) => {
                let detail = candidates.resolve_error.take();
                return Err(last.unwrap_or(ConnectError {
                    reason,
                    address: None,
                    detail,
                }));
            }
        };
        let address = candidate.address;
        // Before the handshake: a connection that is made while the identity changes is used once.
        let owner = context.worker.mesh.as_ref().map_or(0, |mesh| mesh.owner());
        let mut attempt = 0;
        loop {
            let fresh_only = attempt > 0;
            let (mut connection, reused) = match acquire(
                session,
                target,
                (address, owner),
                http2,
                fresh_only,
                &deadline,
            )
            .await
            {
                Ok(connection) => connection,
                Err(error) => {
                    candidate.load.failed();
                    last = Some(error);
                    break;
                }
            };
            let copy = (reused && !fresh_only && is_repeatable(&request)).then(|| copy(&request));
            let mut error = match connection.send(request).await {
                Ok(response) => {
                    let (limits, timeouts) = (&context.snapshot.limits, &context.snapshot.timeouts);
                    let lease = Lease {
                        worker: context.worker.clone(),
                        key: Key::new(context, target, address, owner),
                        connection,
                        max_idle: limits.idle_connections_per_endpoint,
                        idle_timeout: timeouts.http_idle,
                        _load: candidate.load,
                    };
                    return Ok(Sent {
                        response,
                        address,
                        lease,
                    });
                }
                Err(error) => error,
            };
            let unsent = error.take_message();
            let error = error.into_error();
            let reason = upstream_reason(&error);
            request = match (unsent, copy) {
                (Some(unsent), _) if reused && attempt < MAX_UNSENT_ATTEMPTS => unsent,
                (_, Some(copy)) if is_stale(&error) => copy,
                _ => {
                    return Err(ConnectError {
                        reason,
                        address: Some(address),
                        detail: Some(words(&error)),
                    });
                }
            };
            attempt += 1;
        }
    }
}

/// A connection to an address, for which we are the given owner, and whether it served requests before. What makes a new one is boxed: hyper moves
/// the future of every request, and most need none.
async fn acquire(
    session: &Session,
    target: &Target,
    (address, owner): (SocketAddr, u64),
    http2: bool,
    fresh_only: bool,
    deadline: &Cell<Option<Instant>>,
) -> Result<(Connection, bool), ConnectError> {
    let pool = &session.context.worker.http;
    let key = Key::new(&session.context, target, address, owner);
    if !http2 {
        if !fresh_only && let Some(kept) = pool.take_http1(&key) {
            return Ok((Connection::Http1(kept), true));
        }
        let made = Box::pin(async {
            let opened = open(session, target, address, http2, deadline).await?;
            http1(session, address, opened).await
        });
        return Ok((Connection::Http1(made.await?), false));
    }
    loop {
        match pool.http2(&key) {
            Http2Choice::Connected(place) => return Ok((Connection::Http2(place), true)),
            Http2Choice::Wait(notify) => notify.notified().await,
            Http2Choice::Dial(_dialling) => {
                let place = Box::pin(async {
                    let opened = open(session, target, address, http2, deadline).await?;
                    http2_connection(session, key, opened).await
                });
                return Ok((Connection::Http2(place.await?), false));
            }
        }
    }
}

/// The stream that detection opened, if it goes to `address`, else a new one.
async fn open(
    session: &Session,
    target: &Target,
    address: SocketAddr,
    http2: bool,
    deadline: &Cell<Option<Instant>>,
) -> Result<Opened, ConnectError> {
    let early = session
        .early
        .borrow_mut()
        .take_if(|early| early.address == address);
    if let Some(early) = early {
        return Ok(Opened {
            stream: early.stream,
            tls: early.tls,
        });
    }
    let context = &session.context;
    let timeout = connect::timeout(context, target);
    let until = deadline.get().unwrap_or_else(|| Instant::now() + timeout);
    deadline.set(Some(until));
    let left = until.saturating_duration_since(Instant::now());
    let endpoints = target.service.as_ref().map_or(1, |s| s.endpoints.len());
    let share = connect::share(left, endpoints);
    let carried = if http2 {
        Carried::Http2
    } else {
        Carried::Http1
    };
    connect::open(context, target, address, carried, share).await
}

async fn http1(
    session: &Session,
    address: SocketAddr,
    opened: Opened,
) -> Result<Http1, ConnectError> {
    let snapshot = &session.context.snapshot;
    let limits = &snapshot.limits;
    // Kept connections live long enough to see their peer vanish. It fails only on a socket that has failed.
    let socket = opened.stream.tcp().map(SockRef::from);
    let _ = socket.map(|socket| liveness::watch(&socket, &snapshot.timeouts));
    let mut builder = http1::Builder::new();
    builder
        .max_buf_size(buffer_bytes(
            limits.header_bytes,
            session.context.worker.buffers.grant(limits.buffer_bytes),
        ))
        .max_header_size(limits.header_bytes);
    if limits.headers != 100 {
        builder.max_headers(limits.headers);
    }
    let Opened { mut stream, tls } = opened;
    let doubt = stream.put_off(&session.context.worker.doubts);
    let io = TokioIo::new(UpstreamIo::new(stream));
    let (sender, connection) = builder
        .handshake(io)
        .await
        .map_err(|error| handshake_error(address, &error))?;
    tokio::task::spawn_local(async move {
        // Errors reach the request that they concern.
        let _ = connection.with_upgrades().await;
    });
    Ok(Http1 { sender, tls, doubt })
}

async fn http2_connection(
    session: &Session,
    key: Key,
    opened: Opened,
) -> Result<Place, ConnectError> {
    let snapshot = &session.context.snapshot;
    let socket = opened.stream.tcp().map(SockRef::from);
    let _ = socket.map(|socket| liveness::watch(&socket, &snapshot.timeouts));
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(u32::try_from(snapshot.limits.header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_reset_streams(MAX_RESET_STREAMS)
        // What comes later for a stream that a client gave up counts as an error of the stream, and h2 never forgets one:
        // a connection on which clients often cancel would be closed under those who do not.
        .max_local_error_reset_streams(None)
        .keep_alive_timeout(PING_TIMEOUT);
    if !snapshot.timeouts.keepalive.is_zero() {
        builder.keep_alive_interval(snapshot.timeouts.keepalive);
    }
    let Opened { mut stream, tls } = opened;
    // What a frame is followed by nobody tells: the question waits until what came is passed on.
    stream.put_off(&session.context.worker.doubts);
    let io = TokioIo::new(UpstreamIo::new(stream));
    let (sender, mut connection) = builder
        .handshake(io)
        .await
        .map_err(|error| handshake_error(key.address, &error))?;
    let max_streams = Rc::new(Cell::new(connection.current_max_send_streams()));
    let pool = session.context.worker.http.clone();
    let place = pool.put_http2(
        key,
        sender,
        tls,
        max_streams.clone(),
        snapshot.timeouts.http_idle,
    );
    tokio::task::spawn_local(async move {
        // Errors reach the requests that they concern.
        let _ = std::future::poll_fn(|cx| {
            let done = Pin::new(&mut connection).poll(cx);
            max_streams.set(connection.current_max_send_streams());
            done
        })
        .await;
    });
    Ok(place)
}

impl Connection {
    async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        match self {
            Self::Http1(connection) => connection.sender.try_send_request(request).await,
            Self::Http2(place) => place.sender().try_send_request(request).await,
        }
    }
}

/// hyper's buffer for one connection: a head must fit.
pub(super) fn buffer_bytes(header_bytes: usize, buffer_bytes: usize) -> usize {
    buffer_bytes
        .max(header_bytes.saturating_add(1024))
        .max(MIN_BUFFER_BYTES)
}

/// Whether doing it twice is the same as doing it once (RFC 9110, 9.2.2) and there is no body to send twice.
fn is_repeatable(request: &Request<RequestBody>) -> bool {
    let idempotent = [
        Method::GET,
        Method::HEAD,
        Method::OPTIONS,
        Method::TRACE,
        Method::PUT,
        Method::DELETE,
    ];
    request.body().is_end_stream() && idempotent.contains(request.method())
}

/// Whether a kept connection failed because it had been given up by the other side, so that the request was
/// most likely not looked at.
fn is_stale(error: &hyper::Error) -> bool {
    if error.is_parse() {
        return false;
    }
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<h2::Error>() {
            let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
            return refused || error.is_go_away() || error.is_io();
        }
        source = cause.source();
    }
    true
}

fn copy(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

fn no_endpoint() -> ConnectError {
    ConnectError {
        reason: Reason::NoEndpoint,
        address: None,
        detail: None,
    }
}

fn handshake_error(address: SocketAddr, error: &hyper::Error) -> ConnectError {
    ConnectError {
        reason: upstream_reason(error),
        address: Some(address),
        detail: Some(words(error)),
    }
}
