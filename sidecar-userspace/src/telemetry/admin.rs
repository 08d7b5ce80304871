//! The admin endpoints: metrics, health, and on loopback what an operator asks a running proxy.
//!
//! They run on a thread of their own, so that they answer while the workers are busy.

use std::{convert::Infallible, sync::Arc, time::Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::{net::TcpListener, sync::mpsc, task};

use super::{
    certs::certs,
    config_dump::{clusters, config_dump},
    metrics::Metrics,
};
use crate::{
    config::watch::SnapshotHandle,
    lifecycle::{drain::DrainSignal, readiness::Readiness},
    tls::mesh::MeshHandle,
};

/// What a listener answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Loopback: everything.
    Admin,
    Metrics,
    Health,
}

/// What the endpoints tell about. Shared by the admin connections.
#[derive(Debug)]
pub struct Admin {
    pub metrics: Arc<Metrics>,
    pub snapshot: Arc<SnapshotHandle>,
    pub readiness: Readiness,
    pub drain: DrainSignal,
    pub started: Instant,
    /// Asks the proxy to drain and end.
    pub quit: mpsc::Sender<()>,
    /// Sets the log filter (such as `debug`) if the process has one that can be changed; `Err` says why not.
    pub set_log_filter: Option<LogFilter>,
    /// The workload's identity; `None`: none is configured.
    pub mesh: Option<Arc<MeshHandle>>,
}

/// Changes the process's log filter.
#[derive(Clone)]
pub struct LogFilter(pub Arc<SetLogFilter>);

/// Takes a filter directive; errors say what is wrong with it.
pub type SetLogFilter = dyn Fn(&str) -> Result<(), String> + Send + Sync;

impl std::fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogFilter")
    }
}

pub(crate) type Answer = Response<Full<Bytes>>;

/// Admin paths with what they do; `/help` prints them.
const HELP: &[(&str, &str)] = &[
    (
        "GET /ready",
        "200 when the proxy serves, 503 with what is missing else; also /healthz/ready",
    ),
    ("GET /healthz/live", "200 while the process runs"),
    ("GET /server_info", "version, state, uptime"),
    ("GET /config_dump", "the configuration in force"),
    (
        "GET /certs",
        "the workload's certificate and the roots that it trusts",
    ),
    ("GET /clusters", "services and their endpoints"),
    ("GET /stats", "metrics; also /stats/prometheus and /metrics"),
    (
        "POST /logging?level=FILTER",
        "change the log filter, for example debug or info,hyper=debug",
    ),
    ("POST /quitquitquit", "drain and end"),
    ("GET /help", "this list"),
];

/// Serves one listener until its future is dropped. Needs a local task set or runtime.
pub async fn serve(listener: TcpListener, scope: Scope, admin: Arc<Admin>) -> Infallible {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, ?scope, "cannot accept an admin connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let admin = admin.clone();
        task::spawn_local(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let admin = admin.clone();
                async move { Ok::<_, Infallible>(admin.answer(scope, &request).await) }
            });
            let mut server = http1::Builder::new();
            server
                .timer(TokioTimer::new())
                .header_read_timeout(std::time::Duration::from_secs(10));
            if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, ?scope, "admin connection failed");
            }
        });
    }
}

impl Admin {
    async fn answer(&self, scope: Scope, request: &Request<Incoming>) -> Answer {
        let path = request.uri().path();
        let metrics = matches!(path, "/stats" | "/stats/prometheus" | "/metrics");
        let health = matches!(path, "/ready" | "/healthz/ready" | "/healthz/live");
        let allowed = match scope {
            Scope::Admin => true,
            Scope::Metrics => metrics,
            Scope::Health => health,
        };
        if !allowed {
            return text(StatusCode::NOT_FOUND, "not found\n");
        }
        let get = matches!(*request.method(), Method::GET | Method::HEAD);
        match path {
            "/quitquitquit" | "/logging" if request.method() != Method::POST => only(Method::POST),
            "/quitquitquit" => self.quit().await,
            "/logging" => self.logging(request.uri().query()),
            _ if !get => only(Method::GET),
            _ if metrics => self.stats(),
            "/ready" | "/healthz/ready" => self.ready(),
            "/healthz/live" => text(StatusCode::OK, "live\n"),
            "/server_info" => self.server_info(),
            "/config_dump" => json_answer(&config_dump(&self.snapshot.load())),
            "/certs" => json_answer(&certs(self.mesh.as_deref())),
            "/clusters" => json_answer(&clusters(&self.snapshot.load())),
            "/" | "/help" => {
                let lines = HELP
                    .iter()
                    .map(|(path, what)| format!("{path:<28} {what}\n"));
                text(StatusCode::OK, lines.collect::<String>())
            }
            _ => text(StatusCode::NOT_FOUND, "not found, see /help\n"),
        }
    }

    fn ready(&self) -> Answer {
        let mut pending = self.readiness.pending();
        if self.drain.is_draining() {
            pending.push("draining");
        }
        match pending.is_empty() {
            true => text(StatusCode::OK, "ready\n"),
            false => text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: {}\n", pending.join(", ")),
            ),
        }
    }

    fn stats(&self) -> Answer {
        let mesh = self.mesh.as_ref().and_then(|mesh| mesh.load());
        self.metrics
            .tls
            .expiry(mesh.as_ref().map(|mesh| &mesh.material));
        self.metrics.configuration(&self.snapshot.status());
        exposed(self.metrics.exposition())
    }

    fn server_info(&self) -> Answer {
        let state = match (self.drain.is_draining(), self.readiness.is_ready()) {
            (true, _) => "DRAINING",
            (false, true) => "LIVE",
            (false, false) => "INITIALIZING",
        };
        json_answer(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "state": state,
            "uptime_s": self.started.elapsed().as_secs(),
            "configuration_generation": self.snapshot.load().generation,
        }))
    }

    async fn quit(&self) -> Answer {
        // Fails only when the proxy is ending already.
        let _ = self.quit.send(()).await;
        text(StatusCode::OK, "draining\n")
    }

    fn logging(&self, query: Option<&str>) -> Answer {
        logging(self.set_log_filter.as_ref(), query)
    }
}

/// The answer to `/logging`.
pub(super) fn logging(set: Option<&LogFilter>, query: Option<&str>) -> Answer {
    let filter = query.and_then(|query| {
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix("level="))
    });
    match (filter, set) {
        (None, _) => text(StatusCode::BAD_REQUEST, "say what: /logging?level=debug\n"),
        (_, None) => text(
            StatusCode::NOT_IMPLEMENTED,
            "this process's log filter cannot be changed\n",
        ),
        (Some(filter), Some(set)) => match (set.0)(filter) {
            Ok(()) => text(StatusCode::OK, format!("log filter is now {filter}\n")),
            Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        },
    }
}

/// Metrics as Prometheus wants them.
pub(crate) fn exposed(exposition: Result<impl Into<Bytes>, prometheus::Error>) -> Answer {
    let mut answer = match exposition {
        Ok(exposition) => text(StatusCode::OK, exposition),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    };
    let format = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, format);
    answer
}

pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain; charset=utf-8", body.into())
}

pub(crate) fn json_answer(value: &serde_json::Value) -> Answer {
    answer(
        StatusCode::OK,
        "application/json",
        format!("{value:#}\n").into(),
    )
}

pub(crate) fn only(method: Method) -> Answer {
    let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, format!("only {method}\n"));
    if let Ok(method) = method.as_str().parse() {
        refused.headers_mut().insert(header::ALLOW, method);
    }
    refused
}

fn answer(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    answer
}
