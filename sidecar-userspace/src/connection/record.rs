//! Record: exactly one outcome for every accepted connection and every request.
//!
//! The records are values that count themselves when they are dropped. Whatever way a task ends, by return,
//! by `?`, or because its future was dropped, the outcome is not lost; one that nobody set is `abandoned`.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use prometheus::{Histogram, IntCounter, IntGauge};

use super::{Direction, Ended, Outcome, Reason, connect::ConnectError};
use crate::{
    lifecycle::drain::{DrainSignal, Phase},
    policy::RuleName,
    telemetry::{access_log::AccessLog, metrics::Metrics},
    tls::Secured,
};

/// A worker's hand on the process's counters and access log. Cheap to clone, stays on its worker.
#[derive(Debug, Clone)]
pub struct Recorder(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    metrics: Arc<Metrics>,
    log: AccessLog,
    drain: DrainSignal,
    /// Handles that were looked up before: labels to counters without the registry's lock.
    connections: RefCell<HashMap<ConnectionKey, ConnectionHandles>>,
    requests: RefCell<HashMap<RequestKey, RequestHandles>>,
    open: [IntGauge; 2],
    dialled: IntCounter,
    detections: RefCell<HashMap<(Direction, &'static str), IntCounter>>,
}

type ConnectionKey = (Direction, &'static str, Option<Arc<str>>, Outcome);
type RequestKey = (Direction, Option<Arc<str>>, u16, Outcome);

#[derive(Debug, Clone)]
struct ConnectionHandles {
    ended: IntCounter,
    client_bytes: IntCounter,
    upstream_bytes: IntCounter,
}

#[derive(Debug, Clone)]
struct RequestHandles {
    ended: IntCounter,
    duration: Histogram,
}

/// Entries of a worker's handle cache before it is emptied: bounds memory where services come and go.
const MAX_CACHED_HANDLES: usize = 4096;

impl Recorder {
    pub fn new(metrics: Arc<Metrics>, log: AccessLog, drain: DrainSignal) -> Self {
        let gauge = |direction: Direction| {
            metrics
                .connections_open
                .with_label_values(&[direction.name()])
        };
        let open = [gauge(Direction::Inbound), gauge(Direction::Outbound)];
        let dialled = metrics.dials.with_label_values(&[Outcome::Success.code()]);
        Self(Rc::new(Inner {
            metrics,
            log,
            drain,
            dialled,
            connections: RefCell::default(),
            requests: RefCell::default(),
            detections: RefCell::default(),
            open,
        }))
    }

    /// Without an access log.
    #[cfg(test)]
    pub(crate) fn for_tests(metrics: &Arc<Metrics>) -> Self {
        Self::with_log(metrics, AccessLog::for_tests(metrics))
    }

    #[cfg(test)]
    pub(crate) fn with_log(metrics: &Arc<Metrics>, log: AccessLog) -> Self {
        let drain = crate::lifecycle::drain::Drain::default();
        Self::new(metrics.clone(), log, drain.signal())
    }

    /// Counts an attempt to dial an endpoint; `None`: it answered.
    pub fn dialled(&self, failure: Option<Reason>) {
        match failure {
            None => self.0.dialled.inc(),
            Some(reason) => self
                .0
                .metrics
                .dials
                .with_label_values(&[reason.code()])
                .inc(),
        }
    }

    /// Counts a connection to upstream that could not have the port to which the application has bound its socket.
    pub fn source_port_lost(&self) {
        self.0.metrics.source_ports_lost.inc();
    }

    /// Counts a failed `accept` by the error's name.
    pub fn accept_failed(&self, direction: Direction, error: &str) {
        self.0
            .metrics
            .accept_errors
            .with_label_values(&[direction.name(), error])
            .inc();
    }

    /// Counts what protocol detection found.
    pub fn detected(&self, direction: Direction, result: &'static str) {
        let counter = cached(&self.0.detections, (direction, result), || {
            self.0
                .metrics
                .detections
                .with_label_values(&[direction.name(), result])
        });
        counter.inc();
    }

    /// Counts how a connection to the workload is secured: `mutual_tls` or `none`.
    pub fn secured(&self, security: &'static str) {
        let counters = &self.0.metrics.tls.inbound;
        counters.with_label_values(&[security]).inc();
    }

    /// Counts a TLS handshake: how it ended, and of a good one the version and whether a session was taken up.
    pub fn handshake(&self, direction: Direction, result: Result<&Secured, Reason>) {
        let (reason, version, resumed) = match result {
            Ok(secured) => (Outcome::Success.code(), secured.version, secured.resumed),
            Err(reason) => (reason.code(), "-", false),
        };
        let resumed = if resumed { "true" } else { "false" };
        let labels = [direction.name(), reason, version, resumed];
        self.0
            .metrics
            .tls
            .handshakes
            .with_label_values(&labels)
            .inc();
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// The record of a connection that was just accepted; counts as open until dropped.
    pub fn connection(&self, direction: Direction, peer: SocketAddr) -> ConnectionRecord {
        self.0.open(direction).inc();
        ConnectionRecord {
            recorder: self.clone(),
            direction,
            peer,
            destination: None,
            protocol: "tcp",
            service: None,
            upstream: None,
            client_tls: None,
            upstream_tls: None,
            accepted_at: SystemTime::now(),
            started: Instant::now(),
            client_bytes: 0,
            upstream_bytes: 0,
            denied_by: None,
            audited_by: Vec::new(),
            detail: None,
            outcome: None,
        }
    }

    /// The record of a request whose head has arrived (or failed to).
    pub fn request(&self, direction: Direction, peer: SocketAddr) -> RequestRecord {
        RequestRecord {
            recorder: self.clone(),
            direction,
            peer,
            destination: None,
            method: http::Method::GET,
            authority: None,
            path: None,
            version: http::Version::HTTP_11,
            service: None,
            route: None,
            upstream: None,
            client_tls: None,
            upstream_tls: None,
            status: 0,
            request_bytes: 0,
            response_bytes: 0,
            user_agent: None,
            request_id: None,
            traceparent: None,
            started_at: SystemTime::now(),
            started: Instant::now(),
            first_byte: None,
            denied_by: None,
            audited_by: Vec::new(),
            detail: None,
            outcome: None,
        }
    }
}

/// One accepted connection. Fields are filled as the steps learn them; dropping it records it.
#[derive(Debug)]
pub struct ConnectionRecord {
    recorder: Recorder,
    pub direction: Direction,
    pub peer: SocketAddr,
    /// The original destination; `None` for the explicit proxy.
    pub destination: Option<SocketAddr>,
    /// `tcp`, `http` or `tunnel`, once it is known. A log line is written for `tcp`; `http` is logged by request, a tunnel by
    /// the connections in it, and both as connections only where they failed.
    pub protocol: &'static str,
    pub service: Option<Arc<str>>,
    /// The endpoint that was dialled.
    pub upstream: Option<SocketAddr>,
    /// The client's TLS, where the sidecar ends it.
    pub client_tls: Option<Arc<Secured>>,
    /// TLS to the endpoint, where the sidecar begins it.
    pub upstream_tls: Option<Arc<Secured>>,
    pub accepted_at: SystemTime,
    pub started: Instant,
    pub client_bytes: u64,
    pub upstream_bytes: u64,
    /// The policy that refused it.
    pub denied_by: Option<RuleName>,
    /// AUDIT policies that matched it.
    pub audited_by: Vec<RuleName>,
    /// Further words for the log.
    pub detail: Option<String>,
    outcome: Option<Outcome>,
}

impl ConnectionRecord {
    /// The first outcome stays: what failed first is the cause, what follows are consequences.
    pub fn end(&mut self, outcome: impl Into<Outcome>) {
        self.outcome.get_or_insert(outcome.into());
    }

    /// What came of the steps.
    pub fn conclude(&mut self, result: Result<Ended, ConnectError>) {
        match result {
            Ok(ended) => self.ended(ended),
            Err(failure) => self.failed(failure),
        }
    }

    /// Takes over what a relay says of the connection.
    pub fn ended(&mut self, ended: Ended) {
        self.client_bytes += ended.client_bytes;
        self.upstream_bytes += ended.upstream_bytes;
        if self.outcome.is_none() {
            self.detail = ended.detail;
        }
        self.end(ended.outcome);
    }

    /// A step failed.
    pub fn failed(&mut self, failure: ConnectError) {
        if self.outcome.is_none() {
            self.upstream = failure.address.or(self.upstream);
            self.detail = failure.detail.or(self.detail.take());
        }
        self.end(failure.reason);
    }

    pub fn outcome(&self) -> Outcome {
        self.outcome
            .unwrap_or(Outcome::Failure(self.recorder.0.abandoned()))
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        let inner = &self.recorder.0;
        inner.open(self.direction).dec();
        let handles = inner.connection_handles(self);
        handles.ended.inc();
        handles.client_bytes.inc_by(self.client_bytes);
        handles.upstream_bytes.inc_by(self.upstream_bytes);
        inner.policies(self.direction, self.denied_by.as_ref(), &self.audited_by);
        // What they carried speaks for the others that went well.
        if self.protocol == "tcp" || self.outcome() != Outcome::Success {
            inner.log.connection(self);
        }
    }
}

/// One request. Fields are filled as they become known; dropping it records it.
#[derive(Debug)]
pub struct RequestRecord {
    recorder: Recorder,
    pub direction: Direction,
    pub peer: SocketAddr,
    pub destination: Option<SocketAddr>,
    pub method: http::Method,
    /// As the client sent it; escaped where it is written.
    pub authority: Option<http::uri::Authority>,
    /// Path and query as the client sent them; escaped where they are written.
    pub path: Option<http::uri::PathAndQuery>,
    pub version: http::Version,
    pub service: Option<Arc<str>>,
    pub route: Option<Arc<str>>,
    pub upstream: Option<SocketAddr>,
    /// TLS of the client's connection, where the sidecar ends it.
    pub client_tls: Option<Arc<Secured>>,
    /// TLS of the connection that took the request, where the sidecar begins it.
    pub upstream_tls: Option<Arc<Secured>>,
    /// The status that the client got; 0: none was sent.
    pub status: u16,
    /// Body bytes.
    pub request_bytes: u64,
    /// Body bytes.
    pub response_bytes: u64,
    pub user_agent: Option<http::HeaderValue>,
    pub request_id: Option<http::HeaderValue>,
    pub traceparent: Option<http::HeaderValue>,
    pub started_at: SystemTime,
    pub started: Instant,
    /// From the start to the response's head.
    pub first_byte: Option<Duration>,
    /// The policy that refused it.
    pub denied_by: Option<RuleName>,
    /// AUDIT policies that matched it.
    pub audited_by: Vec<RuleName>,
    pub detail: Option<String>,
    outcome: Option<Outcome>,
}

impl RequestRecord {
    /// The first outcome stays.
    pub fn end(&mut self, outcome: impl Into<Outcome>) {
        self.outcome.get_or_insert(outcome.into());
    }

    pub fn outcome(&self) -> Outcome {
        self.outcome
            .unwrap_or(Outcome::Failure(self.recorder.0.abandoned()))
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let handles = self.recorder.0.request_handles(self);
        handles.ended.inc();
        handles
            .duration
            .observe(self.started.elapsed().as_secs_f64());
        let inner = &self.recorder.0;
        inner.policies(self.direction, self.denied_by.as_ref(), &self.audited_by);
        inner.log.request(self);
    }
}

impl Inner {
    fn open(&self, direction: Direction) -> &IntGauge {
        let [inbound, outbound] = &self.open;
        match direction {
            Direction::Inbound => inbound,
            Direction::Outbound => outbound,
        }
    }

    fn connection_handles(&self, record: &ConnectionRecord) -> ConnectionHandles {
        let outcome = record.outcome();
        let key = (
            record.direction,
            record.protocol,
            record.service.clone(),
            outcome,
        );
        cached(&self.connections, key, || {
            let direction = record.direction.name();
            let destination = self.destination(record.service.as_deref());
            let bytes = |flow| {
                self.metrics
                    .bytes
                    .with_label_values(&[direction, destination, flow])
            };
            ConnectionHandles {
                ended: self.metrics.connections.with_label_values(&[
                    direction,
                    record.protocol,
                    destination,
                    outcome.code(),
                ]),
                client_bytes: bytes("from_client"),
                upstream_bytes: bytes("to_client"),
            }
        })
    }

    fn request_handles(&self, record: &RequestRecord) -> RequestHandles {
        let outcome = record.outcome();
        let class = record.status / 100;
        cached(
            &self.requests,
            (record.direction, record.service.clone(), class, outcome),
            || {
                let direction = record.direction.name();
                let destination = self.destination(record.service.as_deref());
                RequestHandles {
                    ended: self.metrics.requests.with_label_values(&[
                        direction,
                        destination,
                        code_class(class),
                        outcome.code(),
                    ]),
                    duration: self
                        .metrics
                        .request_duration
                        .with_label_values(&[direction, destination]),
                }
            },
        )
    }

    /// Counts what policies matched.
    fn policies(
        &self,
        direction: Direction,
        denied_by: Option<&RuleName>,
        audited_by: &[RuleName],
    ) {
        let denied = denied_by.map(|rule| ("deny", rule));
        let audited = audited_by.iter().map(|rule| ("audit", rule));
        for (action, rule) in denied.into_iter().chain(audited) {
            let policy = self.metrics.policy_label(&rule.policy);
            let labels = [direction.name(), action, policy];
            self.metrics.policy_matches.with_label_values(&labels).inc();
        }
    }

    /// Why a task was dropped: at the end of a drain all that are left are.
    fn abandoned(&self) -> Reason {
        match self.drain.phase() {
            Phase::Ended => Reason::DrainDeadline,
            Phase::Serving | Phase::Draining => Reason::Abandoned,
        }
    }

    fn destination<'a>(&self, service: Option<&'a str>) -> &'a str {
        service.map_or("passthrough", |service| {
            self.metrics.destination_label(service)
        })
    }
}

fn cached<K: std::hash::Hash + Eq, V: Clone>(
    cache: &RefCell<HashMap<K, V>>,
    key: K,
    make: impl FnOnce() -> V,
) -> V {
    let mut cache = cache.borrow_mut();
    if cache.len() >= MAX_CACHED_HANDLES && !cache.contains_key(&key) {
        cache.clear();
    }
    cache.entry(key).or_insert_with(make).clone()
}

fn code_class(class: u16) -> &'static str {
    match class {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        5 => "5xx",
        _ => "none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(metrics: &Metrics, needle: &str) -> usize {
        metrics
            .exposition()
            .unwrap()
            .lines()
            .filter(|line| line.contains(needle))
            .count()
    }

    #[test]
    fn a_dropped_record_is_abandoned_and_the_first_outcome_stays() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let recorder = Recorder::for_tests(&metrics);
        let peer = "127.0.0.1:1".parse().unwrap();
        drop(recorder.connection(Direction::Inbound, peer));
        assert_eq!(count(&metrics, "reason=\"abandoned\"} 1"), 1);
        let mut record = recorder.connection(Direction::Outbound, peer);
        record.end(Reason::ConnectRefused);
        record.end(Outcome::Success);
        drop(record);
        assert_eq!(count(&metrics, "reason=\"connect_refused\"} 1"), 1);
        assert_eq!(count(&metrics, "reason=\"ok\""), 0);
        assert_eq!(
            count(
                &metrics,
                "sidecar_connections_open{direction=\"outbound\"} 0"
            ),
            1
        );
    }
}
