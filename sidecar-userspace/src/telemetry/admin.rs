//! The admin endpoints: metrics, health, and on loopback what an operator asks a running proxy.
//!
//! They run on a thread of their own, so that they answer while the workers are busy.

use std::{convert::Infallible, sync::Arc, time::Instant};

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use serde_json::json;
use tokio::{net::TcpListener, sync::mpsc};

use super::{
    certs::certs,
    config_dump::{clusters, config_dump},
    metrics::Metrics,
};
use crate::{
    config::watch::SnapshotHandle,
    connection::accept::Places,
    endpoint::{
        self, UNBOUNDED,
        answer::{Answer, exposed, json_answer, only, text},
        http1,
    },
    lifecycle::{drain::DrainSignal, memory::MemoryPlan, readiness::Readiness},
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

impl Scope {
    /// As the log names it, and as it is configured.
    const fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Metrics => "metrics",
            Self::Health => "health",
        }
    }
}

/// What the endpoints tell about. Shared by the admin connections.
#[derive(Debug)]
pub struct Admin {
    pub metrics: Arc<Metrics>,
    pub snapshot: Arc<SnapshotHandle>,
    pub readiness: Readiness,
    pub memory: MemoryPlan,
    pub places: Places,
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
    endpoint::accept(listener, scope.name(), UNBOUNDED, |stream| {
        let admin = admin.clone();
        async move { http1(stream, |request| admin.answer(scope, request)).await }
    })
    .await
}

impl Admin {
    async fn answer(&self, scope: Scope, request: Request<Incoming>) -> Answer {
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
            "/config_dump" => {
                let snapshot = self.snapshot.load();
                json_answer(&config_dump(&snapshot, &self.memory, &self.places))
            }
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
