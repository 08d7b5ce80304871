//! One request to somebody else's server: over http or https, bounded in size and time, without redirects.

use std::{error::Error as StdError, io, net::SocketAddr, path::PathBuf, pin::pin, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header, uri::PathAndQuery};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

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

/// What is asked for, and whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    uri: Uri,
    /// A file of roots; `None`: the system's public ones.
    pub roots: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
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
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
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
            Self::TooLarge(_) => "too_large",
            Self::NotText => "not_text",
            Self::TimedOut => "timeout",
        }
    }
}

impl Place {
    /// `None`: it is not an `http` or `https` URL with a host, or has a user in it, whose password logs would show.
    pub fn parse(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let known = matches!(uri.scheme_str(), Some("http" | "https"));
        let authority = uri.authority()?.as_str();
        let good = known && !authority.contains('@') && HeaderValue::from_str(authority).is_ok();
        let named = uri.host().is_some_and(|host| !host.is_empty());
        (good && named).then_some(Self { uri, roots: None })
    }

    pub fn is_https(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    /// A name or an address, the latter without brackets.
    fn host(&self) -> &str {
        let host = self.uri.host().unwrap_or_default();
        host.trim_start_matches('[').trim_end_matches(']')
    }

    fn port(&self) -> u16 {
        let default = if self.is_https() { 443 } else { 80 };
        self.uri.port_u16().unwrap_or(default)
    }

    /// In the form that a server wants.
    fn target(&self) -> Uri {
        let target = self.uri.path_and_query().cloned();
        Uri::from(target.unwrap_or_else(|| PathAndQuery::from_static("/")))
    }

    fn host_field(&self) -> HeaderValue {
        let authority = self.uri.authority().map_or("", |it| it.as_str());
        // Tried when it was parsed.
        HeaderValue::from_str(authority).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    /// For logs and metrics: a query may be a secret.
    pub fn shown(&self) -> String {
        let scheme = self.uri.scheme_str().unwrap_or_default();
        let authority = self.uri.authority().map_or("", |it| it.as_str());
        format!("{scheme}://{authority}{}", self.uri.path())
    }
}

/// The text at `place`, of at most `limit` bytes.
pub async fn text(place: &Place, origins: &Origins, limit: usize) -> Result<String, FetchError> {
    let mut request = Request::new(Full::default());
    *request.method_mut() = Method::GET;
    let accepted = HeaderValue::from_static("application/json, */*");
    request.headers_mut().insert(header::ACCEPT, accepted);
    let answer = exchange(place, origins, request, limit).await?;
    match answer.status() {
        StatusCode::OK => {
            String::from_utf8(answer.into_body().into()).map_err(|_| FetchError::NotText)
        }
        other => Err(FetchError::Status(other)),
    }
}

/// The answer to `request` at `place`, whatever its status. The request needs a method, and a body if it has one; what else
/// a server wants is put in here.
pub async fn exchange(
    place: &Place,
    origins: &Origins,
    request: Request<Full<Bytes>>,
    limit: usize,
) -> Result<Response<Bytes>, FetchError> {
    match timeout(PATIENCE, ask(place, origins, request, limit)).await {
        Ok(answer) => answer,
        Err(_) => Err(FetchError::TimedOut),
    }
}

async fn ask(
    place: &Place,
    origins: &Origins,
    request: Request<Full<Bytes>>,
    limit: usize,
) -> Result<Response<Bytes>, FetchError> {
    let tcp = dial(place).await?;
    if !place.is_https() {
        return send(place, tcp, request, limit).await;
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
    send(place, tls.map_err(FetchError::Tls)?, request, limit).await
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

async fn send(
    place: &Place,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    mut request: Request<Full<Bytes>>,
    limit: usize,
) -> Result<Response<Bytes>, FetchError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    *request.uri_mut() = place.target();
    let fields = request.headers_mut();
    fields.insert(header::HOST, place.host_field());
    fields.insert(header::USER_AGENT, HeaderValue::from_static("sidecar"));
    fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let mut exchange = pin!(async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, limit).collect().await;
        let body = body.map_err(|error| unreadable(error, limit))?;
        Ok(Response::from_parts(head, body.to_bytes()))
    });
    // One task does both, so that nothing is left of it when its time is up.
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        // What it has read is there still; an error reaches the exchange.
        _ = connection => exchange.await,
    }
}

fn unreadable(error: Box<dyn StdError + Send + Sync>, limit: usize) -> FetchError {
    if error.is::<LengthLimitError>() {
        return FetchError::TooLarge(limit);
    }
    match error.downcast::<hyper::Error>() {
        Ok(error) => FetchError::Http(*error),
        Err(error) => FetchError::Tls(io::Error::other(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let place = Place::parse("https://[::1]:8443/keys?secret=1").unwrap();
        assert_eq!((place.host(), place.port()), ("::1", 8443));
        assert_eq!(place.target(), "/keys?secret=1");
        assert_eq!(place.host_field(), "[::1]:8443");
        assert_eq!(place.shown(), "https://[::1]:8443/keys");
        let bare = Place::parse("http://issuer.example").unwrap();
        assert_eq!((bare.port(), bare.is_https()), (80, false));
        assert_eq!(bare.target(), "/");
        for wrong in ["", "/keys", "issuer.example", "ftp://a/", "https://u:p@a/"] {
            assert!(Place::parse(wrong).is_none(), "{wrong}");
        }
    }
}
