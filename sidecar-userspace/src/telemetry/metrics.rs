//! Prometheus counters of the data path. Workers keep the handles they use, so that counting is one atomic add.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use super::tls_metrics::TlsMetrics;
use crate::config::watch::ReloadStatus;

/// OpenTelemetry's buckets for HTTP durations, in seconds.
const DURATION_BUCKETS_S: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

/// Destinations, and policies, that get a label value of their own; further ones share [`OVERFLOW`].
const MAX_LABELS: usize = 500;

/// Label value of whatever exceeds the cardinality cap.
pub const OVERFLOW: &str = "overflow";

/// Every metric of the process. One per proxy, shared by workers and the admin endpoints.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Ended connections by direction, protocol, destination, reason.
    pub connections: IntCounterVec,
    /// Connections being served, by direction.
    pub connections_open: IntGaugeVec,
    /// Bytes relayed, by direction, destination and flow (`from_client`, `to_client`).
    pub bytes: IntCounterVec,
    /// Ended requests by direction, destination, code class, reason.
    pub requests: IntCounterVec,
    /// Duration of requests in seconds, by direction and destination.
    pub request_duration: HistogramVec,
    /// What protocol detection found, by direction and result.
    pub detections: IntCounterVec,
    /// Failed `accept` calls, by direction and error.
    pub accept_errors: IntCounterVec,
    /// Attempts to dial an endpoint, by result.
    pub dials: IntCounterVec,
    /// Connections to upstream without the port to which the application has bound its socket.
    pub source_ports_lost: IntCounter,
    /// What policies matched that refuse or audit, by direction, action and policy.
    pub policy_matches: IntCounterVec,
    /// Attempts to fetch the keys of tokens, by URL and result.
    pub jwks_fetches: IntCounterVec,
    /// Lines of the access log that were not written because its reader is too slow.
    pub access_log_dropped: IntCounter,
    /// TLS of all connections.
    pub tls: TlsMetrics,
    configuration: Configuration,
    /// Destinations that have a label value, see [`MAX_LABELS`].
    destinations: Capped,
    policies: Capped,
}

/// Label values that were given out.
#[derive(Debug, Default)]
struct Capped(Mutex<HashSet<String>>);

impl Capped {
    fn label<'a>(&self, value: &'a str) -> &'a str {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(value) {
            return value;
        }
        if known.len() >= MAX_LABELS {
            return OVERFLOW;
        }
        known.insert(value.to_owned());
        value
    }
}

/// The configuration in force and its reloads.
#[derive(Debug)]
struct Configuration {
    generation: IntGauge,
    stale: IntGauge,
    last_success: IntGauge,
    reloads: IntCounterVec,
}

impl Configuration {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let reloads = IntCounterVec::new(
            Opts::new(
                "sidecar_config_reloads_total",
                "Attempts to load the configuration again.",
            ),
            &["result"],
        )?;
        registry.register(Box::new(reloads.clone()))?;
        Ok(Self {
            generation: gauge(
                "sidecar_config_generation",
                "Generation of the configuration in force.",
            )?,
            stale: gauge(
                "sidecar_config_stale",
                "1 if the file is bad and an older one is in force.",
            )?,
            last_success: gauge(
                "sidecar_config_last_success_timestamp_seconds",
                "When a good configuration was last read, in Unix time.",
            )?,
            reloads,
        })
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Metrics {
    /// Errors only if two metrics of this file share a name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok::<_, prometheus::Error>(vec)
        };
        let connections = counter(
            "sidecar_connections_total",
            "Connections that ended, each with exactly one reason.",
            &["direction", "protocol", "destination", "reason"],
        )?;
        let bytes = counter(
            "sidecar_connection_bytes_total",
            "Bytes relayed.",
            &["direction", "destination", "flow"],
        )?;
        let requests = counter(
            "sidecar_requests_total",
            "Requests that ended, each with exactly one reason.",
            &["direction", "destination", "code", "reason"],
        )?;
        let detections = counter(
            "sidecar_detections_total",
            "Results of protocol detection.",
            &["direction", "result"],
        )?;
        let accept_errors = counter(
            "sidecar_accept_errors_total",
            "Failed accept calls.",
            &["direction", "error"],
        )?;
        let dials = counter(
            "sidecar_dials_total",
            "Attempts to connect to an endpoint.",
            &["result"],
        )?;
        let policy_matches = counter(
            "sidecar_policy_matches_total",
            "Connections and requests that a policy refused (deny) or noted (audit).",
            &["direction", "action", "policy"],
        )?;
        let jwks_fetches = counter(
            "sidecar_jwks_fetches_total",
            "Attempts to fetch the keys of tokens.",
            &["url", "result"],
        )?;
        let access_log_dropped = IntCounter::new(
            "sidecar_access_log_dropped_total",
            "Access log lines lost because the log's reader is too slow.",
        )?;
        registry.register(Box::new(access_log_dropped.clone()))?;
        let source_ports_lost = IntCounter::new(
            "sidecar_source_ports_lost_total",
            "Connections to upstream that could not have the port to which the application has bound its socket.",
        )?;
        registry.register(Box::new(source_ports_lost.clone()))?;
        let connections_open = IntGaugeVec::new(
            Opts::new("sidecar_connections_open", "Connections being served."),
            &["direction"],
        )?;
        registry.register(Box::new(connections_open.clone()))?;
        let request_duration = HistogramVec::new(
            HistogramOpts::new("sidecar_request_duration_seconds", "Duration of requests.")
                .buckets(DURATION_BUCKETS_S.to_vec()),
            &["direction", "destination"],
        )?;
        registry.register(Box::new(request_duration.clone()))?;
        let configuration = Configuration::register(&registry)?;
        let tls = TlsMetrics::register(&registry)?;
        Ok(Self {
            registry,
            connections,
            connections_open,
            bytes,
            requests,
            request_duration,
            detections,
            accept_errors,
            dials,
            source_ports_lost,
            policy_matches,
            jwks_fetches,
            access_log_dropped,
            tls,
            configuration,
            destinations: Capped::default(),
            policies: Capped::default(),
        })
    }

    /// Publishes what became of the configuration's reloads.
    pub fn configuration(&self, status: &ReloadStatus) {
        let Configuration {
            generation,
            stale,
            last_success,
            reloads,
        } = &self.configuration;
        generation.set(signed(status.generation));
        stale.set(i64::from(status.stale));
        let since_epoch = status.last_success.duration_since(SystemTime::UNIX_EPOCH);
        last_success.set(signed(since_epoch.unwrap_or_default().as_secs()));
        for (result, count) in [("success", status.successes), ("failure", status.failures)] {
            let counter = reloads.with_label_values(&[result]);
            counter.inc_by(count.saturating_sub(counter.get()));
        }
    }

    /// For metrics of other parts of the process, such as configuration reloads.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The label value for `destination`: itself, or [`OVERFLOW`] once there are too many.
    pub fn destination_label<'a>(&self, destination: &'a str) -> &'a str {
        self.destinations.label(destination)
    }

    /// The same for the name of a policy.
    pub fn policy_label<'a>(&self, policy: &'a str) -> &'a str {
        self.policies.label(policy)
    }

    /// The text exposition format, version 0.0.4.
    pub fn exposition(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_capped() {
        let metrics = Metrics::new().unwrap();
        for n in 0..MAX_LABELS {
            let name = format!("service-{n}");
            assert_eq!(metrics.destination_label(&name), name);
        }
        assert_eq!(metrics.destination_label("one-more"), OVERFLOW);
        assert_eq!(metrics.destination_label("service-7"), "service-7");
    }
}
