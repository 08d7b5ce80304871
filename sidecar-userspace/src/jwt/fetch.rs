//! One GET for a key set: over http or https, bounded in size and time, without redirects.

use std::{error::Error as StdError, io, net::SocketAddr, pin::pin, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{keys::SET_BYTES_MAX, remote::Place};
use crate::{
    model::Origin,
    tls::{
        Carried,
        origin::{OriginError, Origins},
    },
};

/// For the whole: a server that takes longer is as good as down.
const PATIENCE: Duration = Duration::from_secs(10);
/// For one of several addresses.
const CONNECT: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("the name cannot be resolved: {0}")]
    Resolve(io::Error),
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, io::Error),
    #[error("{0}")]
    Roots(#[from] OriginError),
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("the answer is {0} instead of 200 OK, and redirects are not followed")]
    Status(StatusCode),
    #[error("the answer has more than {SET_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the answer is not text")]
    NotText,
    #[error("no complete answer within {PATIENCE:?}")]
    TimedOut,
}

impl FetchError {
    /// For the metric.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Resolve(_) => "resolve",
            Self::Connect(..) => "connect",
            Self::Roots(_) => "roots",
            Self::Tls(_) => "tls",
            Self::Http(_) => "http",
            Self::Status(_) => "status",
            Self::TooLarge => "too_large",
            Self::NotText => "not_a_key_set",
            Self::TimedOut => "timeout",
        }
    }
}

/// What is at `place`.
pub(super) async fn fetch(place: &Place, origins: &Origins) -> Result<String, FetchError> {
    match timeout(PATIENCE, ask(place, origins)).await {
        Ok(answer) => answer,
        Err(_) => Err(FetchError::TimedOut),
    }
}

async fn ask(place: &Place, origins: &Origins) -> Result<String, FetchError> {
    let tcp = dial(place).await?;
    if !place.is_https() {
        return get(place, tcp).await;
    }
    let origin = Origin {
        sni: None,
        roots: place.roots.clone(),
        client: None,
    };
    let config = origins.client(&origin, Carried::Http1)?;
    let name = ServerName::try_from(place.host().to_owned())
        .map_err(|error| FetchError::Tls(io::Error::other(error)))?;
    let tls = TlsConnector::from(config).connect(name, tcp).await;
    get(place, tls.map_err(FetchError::Tls)?).await
}

/// The first address that answers.
async fn dial(place: &Place) -> Result<TcpStream, FetchError> {
    let addresses = tokio::net::lookup_host((place.host(), place.port())).await;
    let mut last = FetchError::Resolve(io::ErrorKind::NotFound.into());
    for address in addresses.map_err(FetchError::Resolve)? {
        match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = FetchError::Connect(address, error),
            Err(_) => last = FetchError::Connect(address, io::ErrorKind::TimedOut.into()),
        }
    }
    Err(last)
}

async fn get(
    place: &Place,
    stream: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<String, FetchError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = place.target();
    let fields = request.headers_mut();
    fields.insert(header::HOST, place.host_field());
    for (name, value) in [
        (header::ACCEPT, "application/json, */*"),
        (header::USER_AGENT, "sidecar"),
        (header::CONNECTION, "close"),
    ] {
        fields.insert(name, header::HeaderValue::from_static(value));
    }
    let mut exchange = pin!(async {
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), SET_BYTES_MAX);
        let body = body.collect().await.map_err(unreadable)?;
        String::from_utf8(body.to_bytes().into()).map_err(|_| FetchError::NotText)
    });
    // One task does both, so that nothing is left of it when its time is up.
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        // What it has read is there still; an error reaches the exchange.
        _ = connection => exchange.await,
    }
}

fn unreadable(error: Box<dyn StdError + Send + Sync>) -> FetchError {
    if error.is::<LengthLimitError>() {
        return FetchError::TooLarge;
    }
    match error.downcast::<hyper::Error>() {
        Ok(error) => FetchError::Http(*error),
        Err(error) => FetchError::Tls(io::Error::other(error)),
    }
}
