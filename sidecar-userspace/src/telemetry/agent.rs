//! What the node's agent tells: health, the pods, metrics by pod.

use std::{
    cell::RefCell, collections::BTreeMap, convert::Infallible, future::ready, rc::Rc, time::Instant,
};

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use prometheus::{
    Encoder, TextEncoder,
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};
use serde_json::json;
use tokio::net::TcpListener;

use super::admin::{LogFilter, logging};
use crate::{
    endpoint::{
        self, UNBOUNDED,
        answer::{Answer, exposed, json_answer, only, text},
        http1,
    },
    enrol::{agent::Agent, state::State},
    kernel::proof::Proof,
};

/// Paths with what they do.
const HELP: &str = "\
GET /ready                   200 once sidecars can enrol; also /healthz/ready and /healthz/live
GET /workloads               the pods that are attached, and their sidecars
GET /metrics                 also /stats and /stats/prometheus
GET /server_info             version, uptime
POST /logging?level=FILTER   change the log filter, for example debug
GET /help                    this list
";

/// What the endpoints tell about.
pub struct Told {
    pub state: Rc<RefCell<State>>,
    pub agent: Rc<Agent>,
    pub started: Instant,
    pub set_log_filter: Option<LogFilter>,
}

/// Serves until its future is dropped. Needs a local task set.
pub async fn serve(listener: TcpListener, told: Rc<Told>) -> Infallible {
    endpoint::accept(listener, "admin", UNBOUNDED, |stream| {
        let told = told.clone();
        async move { http1(stream, |request| ready(told.answer(&request))).await }
    })
    .await
}

impl Told {
    fn answer(&self, request: &Request<Incoming>) -> Answer {
        let path = request.uri().path();
        let get = matches!(*request.method(), Method::GET | Method::HEAD);
        match path {
            "/logging" if request.method() != Method::POST => only(Method::POST),
            "/logging" => logging(self.set_log_filter.as_ref(), request.uri().query()),
            _ if !get => only(Method::GET),
            "/ready" | "/healthz/ready" => text(StatusCode::OK, "ready\n"),
            "/healthz/live" => text(StatusCode::OK, "live\n"),
            "/workloads" => json_answer(&json!({ "workloads": self.state.borrow().show() })),
            "/metrics" | "/stats" | "/stats/prometheus" => exposed(self.exposition()),
            "/server_info" => json_answer(&json!({
                "version": env!("CARGO_PKG_VERSION"),
                "uptime_s": self.started.elapsed().as_secs(),
            })),
            "/" | "/help" => text(StatusCode::OK, HELP),
            _ => text(StatusCode::NOT_FOUND, "not found, see /help\n"),
        }
    }

    fn exposition(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut state = self.state.borrow_mut();
        let (pods, served) = state.population();
        let totals = state.totals;
        let connections = self.agent.connections();
        let one = |value: f64| vec![(Vec::new(), value)];
        let gauge =
            |name, help, value: usize| family(name, help, MetricType::GAUGE, one(value as f64));
        let counter =
            |name, help, value: u64| family(name, help, MetricType::COUNTER, one(value as f64));
        let mut families = vec![
            gauge("sidecar_agent_workloads", "Pods that are attached.", pods),
            gauge(
                "sidecar_agent_sidecars",
                "Pods whose sidecar is connected.",
                served,
            ),
            gauge(
                "sidecar_agent_connections",
                "Connections to the enrolment socket.",
                connections,
            ),
            counter(
                "sidecar_agent_enrolments_total",
                "Sidecars enrolled.",
                totals.enrolments,
            ),
            counter(
                "sidecar_agent_hand_overs_total",
                "Of these, those whose pod was attached already.",
                totals.hand_overs,
            ),
            counter(
                "sidecar_agent_refusals_total",
                "Callers refused.",
                totals.refusals,
            ),
            counter(
                "sidecar_agent_departures_total",
                "Pods detached.",
                totals.departures,
            ),
        ];
        if let Ok(lost) = state.node().probes_lost() {
            families.push(counter(
                "sidecar_agent_probes_lost_total",
                "Connections of the kubelet that pods took for anybody's: more at once than are kept.",
                lost,
            ));
        }
        let mut kinds: BTreeMap<bool, Vec<Sample>> = BTreeMap::new();
        let mut levels = Vec::new();
        for counted in state.counts() {
            if let Some((level, limit)) = counted.redirect {
                let labels = vec![
                    ("namespace", counted.steering.namespace.clone()),
                    ("workload", counted.steering.name.clone()),
                    ("slot", counted.slot.to_string()),
                    ("limit", limit.map_or("", Proof::name).to_owned()),
                ];
                levels.push((labels, f64::from(level.number())));
            }
            let counts = counted.counts.into_iter().filter(|(_, value)| *value > 0);
            for (counter, value) in counts {
                let bytes = counter.is_bytes();
                let kind = if bytes { "path" } else { "event" };
                let labels = vec![
                    ("namespace", counted.steering.namespace.clone()),
                    ("workload", counted.steering.name.clone()),
                    ("slot", counted.slot.to_string()),
                    (kind, counter.name().to_owned()),
                ];
                kinds.entry(bytes).or_default().push((labels, value as f64));
            }
        }
        for (bytes, samples) in kinds {
            let (name, help) = match bytes {
                false => (
                    "sidecar_kernel_events_total",
                    "What the kernel half decided, by pod and kind.",
                ),
                true => (
                    "sidecar_kernel_bytes_total",
                    "Bytes of connections between sockets of this node, by pod and the path they took.",
                ),
            };
            families.push(family(name, help, MetricType::COUNTER, samples));
        }
        let help = "How far redirect goes, by pod: 0 off, 1 between proxies, 2 towards proxies, 3 towards applications, 4 joined; and what it lacks for the next level.";
        if !levels.is_empty() {
            let name = "sidecar_kernel_redirect_level";
            families.push(family(name, help, MetricType::GAUGE, levels));
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }
}

/// Labels and a value.
type Sample = (Vec<(&'static str, String)>, f64);

fn family(name: &str, help: &str, kind: MetricType, samples: Vec<Sample>) -> MetricFamily {
    let sample = |(labels, value): Sample| {
        let label = |(name, value): (&str, String)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value);
            pair
        };
        let mut metric = Metric::default();
        metric.set_label(labels.into_iter().map(label).collect());
        if kind == MetricType::GAUGE {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        } else {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        }
        metric
    };
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(samples.into_iter().map(sample).collect());
    family
}
