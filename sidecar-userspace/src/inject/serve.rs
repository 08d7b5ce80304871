//! The webhook: AdmissionReviews over HTTPS, and health and metrics beside them.
//!
//! The path says who asks, since a review does not tell the labels of the namespace and the API server knows them:
//! `/inject/namespace` is for pods of namespaces that say yes, `/inject/pod` for those that ask themselves.

use std::{
    convert::Infallible,
    rc::Rc,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use prometheus::{Gauge, IntCounterVec, Opts, Registry, TextEncoder};
use rustls::{ServerConfig, version};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    Defaults,
    asked::Namespace,
    keeper::Shown,
    review::{self, Verdict},
};
use crate::{
    endpoint::{
        self,
        answer::{Answer, exposed, json_answer, only, text},
        http1,
    },
    lifecycle::readiness::Readiness,
    tls::provider,
};

/// Bytes of a review: a pod has 1.5 MiB at most, and a review names it once more when it is an update.
const BODY_MAX: usize = 4 * 1024 * 1024;
/// Connections at once; API servers keep a few.
const CONNECTIONS: usize = 256;
/// For a TLS handshake, and for the body of a request.
const PATIENCE: Duration = Duration::from_secs(10);

const HELP: &str = "\
POST /inject/namespace   an AdmissionReview of a pod whose namespace asks for sidecars
POST /inject/pod         likewise, where the namespace does not say
GET /healthz             200 while it runs; also /healthz/live
GET /healthz/ready       200 once API servers can ask
GET /metrics             also /stats/prometheus
";

/// Shared by the connections. Lives as long as the webhook.
#[derive(Debug)]
pub struct Webhook {
    defaults: Defaults,
    readiness: Readiness,
    shown: Arc<Shown>,
    registry: Registry,
    reviews: IntCounterVec,
    expiry: Gauge,
}

impl Webhook {
    /// # Errors
    ///
    /// Never, unless two metrics have one name.
    pub fn new(
        defaults: Defaults,
        readiness: Readiness,
        shown: Arc<Shown>,
    ) -> Result<Rc<Self>, prometheus::Error> {
        let registry = Registry::new();
        let reviews = IntCounterVec::new(
            Opts::new(
                "sidecar_inject_reviews_total",
                "Pods that API servers asked about, by what became of them.",
            ),
            &["verdict"],
        )?;
        for verdict in Verdict::ALL {
            reviews.with_label_values(&[verdict.name()]);
        }
        reviews.with_label_values(&["no_review"]);
        let expiry = Gauge::new(
            "sidecar_inject_certificate_expiry_seconds",
            "When the webhook's certificate ends, in seconds since 1970; 0: there is none.",
        )?;
        registry.register(Box::new(reviews.clone()))?;
        registry.register(Box::new(expiry.clone()))?;
        Ok(Rc::new(Self {
            defaults,
            readiness,
            shown,
            registry,
            reviews,
            expiry,
        }))
    }

    /// Serves until its future is dropped; connections are served on. Needs a local task set.
    pub async fn serve(self: Rc<Self>, listener: TcpListener) -> Result<Infallible, rustls::Error> {
        let acceptor = TlsAcceptor::from(Arc::new(self.tls()?));
        let never = endpoint::accept(listener, "API servers", CONNECTIONS, |stream| {
            self.clone().connection(acceptor.clone(), stream)
        });
        Ok(never.await)
    }

    async fn connection(self: Rc<Self>, acceptor: TlsAcceptor, stream: TcpStream) {
        let stream = match timeout(PATIENCE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "no TLS"),
            Err(_) => return tracing::debug!("no TLS in time"),
        };
        http1(stream, |request| self.answer(request)).await;
    }

    fn tls(&self) -> Result<ServerConfig, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(self.shown.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let says = match request.uri().path() {
            "/inject/namespace" => Namespace::Enabled,
            "/inject/pod" => Namespace::Silent,
            path => return self.other(request.method(), path),
        };
        if request.method() != Method::POST {
            return only(Method::POST);
        }
        let body = Limited::new(request.into_body(), BODY_MAX);
        let body = match timeout(PATIENCE, body.collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let said = format!("a review has at most {BODY_MAX} bytes\n");
                return text(StatusCode::PAYLOAD_TOO_LARGE, said);
            }
            Ok(Err(error)) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
            Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the review came too slowly\n"),
        };
        match review::answer(&body, says, &self.defaults) {
            Ok((answer, verdict)) => {
                self.reviews.with_label_values(&[verdict.name()]).inc();
                tracing::debug!(verdict = verdict.name(), "a review");
                json_answer(&answer)
            }
            Err(error) => {
                self.reviews.with_label_values(&["no_review"]).inc();
                text(StatusCode::BAD_REQUEST, format!("{error}\n"))
            }
        }
    }

    fn other(&self, method: &Method, path: &str) -> Answer {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return only(Method::GET);
        }
        match path {
            "/healthz" | "/healthz/live" => text(StatusCode::OK, "live\n"),
            "/healthz/ready" | "/ready" => match self.readiness.pending().as_slice() {
                [] => text(StatusCode::OK, "ready\n"),
                pending => text(
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("not ready: {}\n", pending.join(", ")),
                ),
            },
            "/metrics" | "/stats" | "/stats/prometheus" => self.metrics(),
            "/" | "/help" => text(StatusCode::OK, HELP),
            _ => text(StatusCode::NOT_FOUND, "not found, see /help\n"),
        }
    }

    fn metrics(&self) -> Answer {
        let not_after = self.shown.not_after().unwrap_or(UNIX_EPOCH);
        let seconds = not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.expiry.set(seconds.as_secs_f64().floor());
        exposed(TextEncoder::new().encode_to_string(&self.registry.gather()))
    }
}
