//! Step record: the kernel half's counters as metrics of the proxy.

use std::sync::Mutex;

use prometheus::{
    core::{Collector, Desc},
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};
use sidecar_common::settings::Workload;
use tracing::debug;

use super::{load::LoadError, proof::Proof, tables::Tables};
use crate::model::Level;

const EVENTS: &str = "sidecar_kernel_events_total";
const BYTES: &str = "sidecar_kernel_bytes_total";
const LEVEL: &str = "sidecar_kernel_redirect_level";

/// Reads the counters of one workload when it is scraped.
pub struct KernelCounters {
    tables: Mutex<Tables>,
    slot: u32,
    events: Desc,
    bytes: Desc,
    level: Desc,
}

impl KernelCounters {
    /// `tables`: handles of its own.
    pub fn new(tables: Tables, slot: u32) -> Result<Self, prometheus::Error> {
        let desc = |name: &str, help: &str, label: &str| {
            Desc::new(
                name.to_owned(),
                help.to_owned(),
                vec![label.to_owned()],
                Default::default(),
            )
        };
        Ok(Self {
            tables: Mutex::new(tables),
            slot,
            events: desc(EVENTS, "What the kernel half decided, by kind.", "event")?,
            bytes: desc(
                BYTES,
                "Bytes of connections between sockets of this node, by the path they took.",
                "path",
            )?,
            level: desc(
                LEVEL,
                "How far redirect goes: 0 off, 1 between proxies, 2 towards proxies, 3 towards applications, 4 joined; and what it lacks for the next level.",
                "limit",
            )?,
        })
    }

    fn read(&self) -> Result<(Vec<(sidecar_common::record::Counter, u64)>, Workload), LoadError> {
        let tables = self
            .tables
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok((tables.counts(self.slot)?, tables.workload(self.slot)?))
    }
}

impl Collector for KernelCounters {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.events, &self.bytes, &self.level]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (counts, workload) = match self.read() {
            Ok(read) => read,
            Err(error) => {
                debug!(%error, "the kernel half's counters cannot be read");
                return Vec::new();
            }
        };
        let family = |desc: &Desc, bytes: bool, label: &str| {
            let counts = counts
                .iter()
                .filter(|(counter, _)| counter.is_bytes() == bytes);
            let metrics = counts
                .map(|(counter, n)| sample(label, counter.name(), *n))
                .collect::<Vec<_>>();
            let mut family = MetricFamily::default();
            family.set_name(desc.fq_name.clone());
            family.set_help(desc.help.clone());
            family.set_field_type(MetricType::COUNTER);
            family.set_metric(metrics);
            family
        };
        let limit = Proof::of_number(workload.redirect_limit);
        let limit = label("limit", limit.map_or("", Proof::name));
        let mut gauge = Gauge::default();
        gauge.set_value(f64::from(Level::of_flags(workload.flags).number()));
        let mut level = Metric::default();
        level.set_label(vec![limit]);
        level.set_gauge(gauge);
        let mut levels = MetricFamily::default();
        levels.set_name(self.level.fq_name.clone());
        levels.set_help(self.level.help.clone());
        levels.set_field_type(MetricType::GAUGE);
        levels.set_metric(vec![level]);
        vec![
            family(&self.events, false, "event"),
            family(&self.bytes, true, "path"),
            levels,
        ]
    }
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

fn sample(name: &str, value: &str, count: u64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(count as f64);
    let mut metric = Metric::default();
    metric.set_label(vec![label(name, value)]);
    metric.set_counter(counter);
    metric
}
