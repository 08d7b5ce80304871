//! The client's side: HTTP/1.1 or HTTP/2, as its first bytes say.

use std::{pin::Pin, rc::Rc, task::Poll, time::Duration};

use bytes::Bytes;
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    audited::{Audited, Version},
    client::{self, CONNECTION_WINDOW_BYTES, PING_TIMEOUT, STREAM_WINDOW_BYTES},
    executor::LocalExecutor,
    framing,
    relay::relay,
    session::Session,
    watch::{Alarm, Watch},
    wire::Wire,
};
use crate::{
    connection::{
        ConnectionContext, Ended, Outcome, Reason, Transport, connect::Upstream, route::Target,
    },
    lifecycle::drain::Phase,
};

/// Requests that one HTTP/2 client may have open at once.
const MAX_STREAMS: u32 = 256;
/// Requests that it may take back before they were looked at. After a moment in which this process did not run, that may be
/// all it had open: a client whose calls ran out of time is no attacker.
const MAX_UNSEEN_RESETS: usize = MAX_STREAMS as usize;

/// Who has not asked for anything for so long is not about to.
const LAST_REQUEST: Duration = Duration::from_secs(5);

/// How long, and for how much, a connection that is to be closed listens to a client that is still sending. A
/// close with unread data is a reset, which takes from the client the answer that it did not read yet.
const LINGER: Duration = Duration::from_secs(2);
const MAX_LINGER_BYTES: u64 = 16 * 1024 * 1024;

/// Serves a client that speaks HTTP until its connection ends.
///
/// `client` gives out the connection's first byte first. `early`: the connection to upstream that was made
/// while the protocol was being found out. `target`: where the connection as a whole goes; `None` for a client
/// of the explicit proxy.
pub async fn serve(
    client: Transport,
    early: Option<Upstream>,
    target: Option<Target>,
    context: Rc<ConnectionContext>,
) -> Ended {
    let wire = Rc::new(Wire::new(&context.worker.buffers));
    let limits = framing::Limits {
        head_bytes: context.snapshot.limits.header_bytes,
        fields: context.snapshot.limits.headers,
    };
    let mut client = Audited::new(client, limits, wire.clone(), context.drain.clone());
    let (outcome, detail) = match version(&mut client, &context).await {
        Err((outcome, detail)) => (outcome, detail),
        Ok(version) => {
            let session = Rc::new(Session {
                context,
                target,
                early: early.into(),
                wire: wire.clone(),
                tunnel: None.into(),
                http2: version == Version::Http2,
            });
            match version {
                Version::Http1 => {
                    client.put_off(&session.context.worker.doubts);
                    http1(client, &session).await
                }
                Version::Http2 => http2(client, &session).await,
            }
        }
    };
    let (client_bytes, upstream_bytes) = wire.bytes();
    Ended {
        outcome,
        client_bytes,
        upstream_bytes,
        detail,
    }
}

type End = (Outcome, Option<String>);

/// How long clients without a request may still come with one when the sidecar leaves. The rest of the drain is for answers.
fn last_request_within(context: &ConnectionContext) -> Duration {
    LAST_REQUEST.min(context.snapshot.timeouts.drain / 2)
}

/// When it is too late for a first request.
async fn last_call(context: &ConnectionContext) {
    context.drain.reached(Phase::Draining).await;
    tokio::time::sleep(last_request_within(context)).await;
}

async fn version(client: &mut Audited, context: &ConnectionContext) -> Result<Version, End> {
    let patience = context.snapshot.timeouts.http_idle;
    tokio::select! {
        biased;
        version = client.version() => match version {
            Ok(Some(version)) => Ok(version),
            Ok(None) => Err((Outcome::Success, None)),
            Err(error) => Err((Reason::ClientReset.into(), Some(error.to_string()))),
        },
        // Nobody has asked for anything.
        () = last_call(context) => Err((Outcome::Success, None)),
        () = tokio::time::sleep(patience) => Err((Outcome::Success, None)),
    }
}

async fn http1(client: Audited, session: &Rc<Session>) -> End {
    let context = &session.context;
    let limits = &context.snapshot.limits;
    let mut builder = http1::Builder::new();
    builder
        // The audit and the watch see to these.
        .header_read_timeout(None)
        .max_buf_size(client::buffer_bytes(
            limits.header_bytes,
            context.worker.buffers.grant(limits.buffer_bytes),
        ));
    if limits.headers > 100 {
        builder.max_headers(limits.headers);
    }
    let service = service_fn(|request| relay(session.clone(), request));
    let mut connection = builder.serve_connection(TokioIo::new(client), service);
    let patience = last_request_within(context);
    let mut watch = Watch::new(&context.snapshot.timeouts, &context.drain, patience);
    let result = std::future::poll_fn(|cx| {
        loop {
            if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(Some(result));
            }
            if session.wire.take_poke() {
                continue;
            }
            match watch.poll(cx, &session.wire) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Alarm::Finish) => Pin::new(&mut connection).graceful_shutdown(),
                Poll::Ready(Alarm::Slow) => session.wire.set_slow(),
                Poll::Ready(Alarm::Force) => return Poll::Ready(None),
            }
        }
    })
    .await;
    let parts = connection.into_parts();
    let client = parts.io.into_inner();
    let mid_message = client.is_mid_message();
    let Some((stream, held)) = client.into_parts() else {
        return (Outcome::Success, None);
    };
    let Some(result) = result else {
        stream.reset();
        return (Reason::DrainDeadline.into(), None);
    };
    let tunnel = session.tunnel.borrow_mut().take();
    if let (Some(tunnel), Ok(())) = (tunnel, &result) {
        tunnel
            .run(session, stream, concat(parts.read_buf, held))
            .await;
    } else if session.wire.is_broken() {
        stream.reset();
    } else if mid_message {
        linger(stream, &session.context).await;
    }
    end(session, result)
}

async fn http2(client: Audited, session: &Rc<Session>) -> End {
    let snapshot = &session.context.snapshot;
    let limits = &snapshot.limits;
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_UNSEEN_RESETS)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_send_buf_size(limits.buffer_bytes.min(1 << 30))
        .keep_alive_timeout(PING_TIMEOUT);
    if !snapshot.timeouts.keepalive.is_zero() {
        builder.keep_alive_interval(snapshot.timeouts.keepalive);
    }
    let shared = session.clone();
    let service = service_fn(move |request| relay(shared.clone(), request));
    let mut connection = builder.serve_connection(TokioIo::new(client), service);
    // GOAWAY says which requests are answered, so that none is lost.
    let mut watch = Watch::new(&snapshot.timeouts, &session.context.drain, Duration::ZERO);
    let result = std::future::poll_fn(|cx| {
        loop {
            if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(Some(result));
            }
            match watch.poll(cx, &session.wire) {
                // Heads are HPACK's business here; the audit passes everything.
                Poll::Pending | Poll::Ready(Alarm::Slow) => return Poll::Pending,
                Poll::Ready(Alarm::Finish) => Pin::new(&mut connection).graceful_shutdown(),
                Poll::Ready(Alarm::Force) => return Poll::Ready(None),
            }
        }
    })
    .await;
    match result {
        Some(result) => end(session, result),
        None => (Reason::DrainDeadline.into(), None),
    }
}

/// How the connection ended. What happened to its requests is in their own records.
fn end(session: &Session, result: hyper::Result<()>) -> End {
    match result {
        Err(error) if session.http2 && super::exchange::is_protocol_error(&error) => {
            let detail = super::exchange::words(&error);
            (Reason::BadRequest.into(), Some(detail))
        }
        Err(error) if session.wire.requests() == 0 => (
            Reason::ClientReset.into(),
            Some(super::exchange::words(&error)),
        ),
        _ => (Outcome::Success, None),
    }
}

/// Closes so that the client gets to read what was written.
async fn linger(mut stream: Transport, context: &ConnectionContext) {
    let listen = async {
        // Fails if the client has gone, and then nobody needs it.
        let _ = stream.shutdown().await;
        let mut sink = tokio::io::sink();
        let mut rest = (&mut stream).take(MAX_LINGER_BYTES);
        let _ = tokio::io::copy(&mut rest, &mut sink).await;
    };
    tokio::select! {
        () = listen => {}
        () = tokio::time::sleep(LINGER) => {}
        () = context.drain.reached(Phase::Ended) => {}
    }
}

fn concat(first: Bytes, second: Bytes) -> Bytes {
    match (first.is_empty(), second.is_empty()) {
        (true, _) => second,
        (_, true) => first,
        _ => [first, second].concat().into(),
    }
}
