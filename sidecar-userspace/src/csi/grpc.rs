//! gRPC as far as a driver needs it: calls of one message each way, on HTTP/2 over a Unix socket of root's.

use std::{convert::Infallible, future::pending, io, rc::Rc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::{
    io::{AsyncWriteExt, join, simplex},
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tracing::{debug, warn};

use super::authority;
use crate::{endpoint, http::executor::LocalExecutor};

/// What the kubelet sends is some kilobytes.
const MAX_BYTES: usize = 256 * 1024;
/// The kubelet has a connection for each call, which takes milliseconds; others wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// Of one connection. The kubelet makes one at a time.
const CALLS: u32 = 16;
/// What a connection may last. The kubelet gives up a call after two minutes.
const LONGEST: Duration = Duration::from_secs(300);
/// A flag for compression and the length of the message.
const PREFIX_BYTES: usize = 5;

/// Codes of google.rpc, as far as they are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    InvalidArgument = 3,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Unimplemented = 12,
    Internal = 13,
}

/// Why a call fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub code: Code,
    pub message: String,
}

impl Status {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// Answers calls.
pub trait Service: 'static {
    /// `method`: such as `/csi.v1.Node/NodeGetInfo`. `message`: encoded; so is what is answered.
    fn call(&self, method: &str, message: Bytes) -> Result<Vec<u8>, Status>;
}

/// The message of a call, decoded.
pub fn decode<T: Message + Default>(message: Bytes) -> Result<T, Status> {
    T::decode(message)
        .map_err(|error| Status::new(Code::InvalidArgument, format!("not understood: {error}")))
}

/// Serves for as long as it is polled. Needs a local task set.
pub async fn serve(listener: UnixListener, service: Rc<impl Service>) -> Infallible {
    endpoint::accept(listener, "kubelet", CONNECTIONS, |stream| {
        let served = connection(stream, service.clone());
        async move {
            match timeout(LONGEST, served).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "a connection of the kubelet ended"),
                Err(_) => debug!("a connection of the kubelet has lasted too long"),
            }
        }
    })
    .await
}

/// Answers the calls of a connection until it ends.
async fn connection(stream: UnixStream, service: Rc<impl Service>) -> hyper::Result<()> {
    let answer = service_fn(|request: Request<Incoming>| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(answer(&*service, request).await) }
    });
    let (mut incoming, outgoing) = stream.into_split();
    let (acceptable, mut forwarded) = simplex(authority::FRAME_BYTES);
    let forwarding = async {
        match authority::forward(&mut incoming, &mut forwarded).await {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                debug!(%error, "what the kubelet sends is not read on");
            }
            _ => {}
        }
        // The server sees an end, and answers what it has before it ends.
        let _ = forwarded.shutdown().await;
        pending().await
    };
    let mut server = http2::Builder::new(LocalExecutor);
    server.max_concurrent_streams(CALLS);
    let io = TokioIo::new(join(acceptable, outgoing));
    tokio::select! {
        ended = server.serve_connection(io, answer) => ended,
        never = forwarding => never,
    }
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

async fn answer(service: &impl Service, request: Request<Incoming>) -> Response<Body> {
    let method = request.uri().path().to_owned();
    let answered = match message_of(request).await {
        Ok(message) => service.call(&method, message),
        Err(status) => Err(status),
    };
    let mut trailers = HeaderMap::new();
    let mut body = BytesMut::new();
    match answered {
        Ok(message) => {
            debug!(method, "answered");
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            body.put_u8(0);
            body.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
            body.extend_from_slice(&message);
        }
        Err(status) => {
            warn!(method, code = ?status.code, reason = status.message, "a call of the kubelet failed");
            trailers.insert("grpc-status", HeaderValue::from(status.code as u16));
            if let Ok(message) = HeaderValue::try_from(escaped(&status.message)) {
                trailers.insert("grpc-message", message);
            }
        }
    }
    let body = Full::new(body.freeze()).with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(body.boxed_unsync());
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, grpc);
    response
}

async fn message_of(request: Request<Incoming>) -> Result<Bytes, Status> {
    let body = Limited::new(request.into_body(), MAX_BYTES).collect().await;
    let body = body.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
        Some(_) => Status::new(
            Code::ResourceExhausted,
            format!("messages of at most {MAX_BYTES} bytes are taken"),
        ),
        None => Status::new(Code::Internal, format!("the call broke off: {error}")),
    })?;
    unframed(body.to_bytes())
}

/// The only message of a call.
fn unframed(body: Bytes) -> Result<Bytes, Status> {
    let broken = || {
        Status::new(
            Code::Internal,
            "a call has one message, with its length before it",
        )
    };
    let (prefix, message) = body
        .split_first_chunk::<PREFIX_BYTES>()
        .ok_or_else(broken)?;
    let [compressed, length @ ..] = *prefix;
    if compressed != 0 {
        return Err(Status::new(Code::Unimplemented, "compression is not known"));
    }
    match u32::from_be_bytes(length) as usize == message.len() {
        true => Ok(body.slice_ref(message)),
        false => Err(broken()),
    }
}

/// As gRPC wants messages of a status: percent-encoded where they are not printable.
fn escaped(message: &str) -> String {
    let escape = |byte: u8| match byte {
        b' '..=b'~' if byte != b'%' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    message.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_is_taken_and_nothing_else() {
        let framed = |bytes: &'static [u8]| unframed(Bytes::from_static(bytes));
        assert_eq!(framed(b"\0\0\0\0\x02ab").unwrap(), "ab");
        assert_eq!(framed(b"\0\0\0\0\0").unwrap(), "");
        for broken in [&b""[..], b"\0\0\0", b"\0\0\0\0\x03ab", b"\0\0\0\0\x01ab"] {
            assert_eq!(
                unframed(Bytes::from_static(broken)).unwrap_err().code,
                Code::Internal
            );
        }
        let compressed = framed(b"\x01\0\0\0\x01a").unwrap_err();
        assert_eq!(compressed.code, Code::Unimplemented);
    }

    #[test]
    fn messages_of_a_status_are_escaped() {
        assert_eq!(escaped("100 % «no»"), "100 %25 %C2%ABno%C2%BB");
    }
}
