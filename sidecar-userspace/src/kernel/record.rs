//! Step record: the kernel half's counters as metrics of the proxy.

use std::sync::Mutex;

use prometheus::{
    core::{Collector, Desc},
    proto::{Counter, LabelPair, Metric, MetricFamily, MetricType},
};
use tracing::debug;

use super::{load::LoadError, tables::Tables};

const EVENTS: &str = "sidecar_kernel_events_total";
const BYTES: &str = "sidecar_kernel_bytes_total";

/// Reads the counters of one workload when it is scraped.
pub struct KernelCounters {
    tables: Mutex<Tables>,
    slot: u32,
    events: Desc,
    bytes: Desc,
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
        })
    }

    fn read(&self) -> Result<Vec<(sidecar_common::record::Counter, u64)>, LoadError> {
        let tables = self
            .tables
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        tables.counts(self.slot)
    }
}

impl Collector for KernelCounters {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.events, &self.bytes]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let counts = match self.read() {
            Ok(counts) => counts,
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
        vec![
            family(&self.events, false, "event"),
            family(&self.bytes, true, "path"),
        ]
    }
}

fn sample(label: &str, value: &str, count: u64) -> Metric {
    let mut pair = LabelPair::default();
    pair.set_name(label.to_owned());
    pair.set_value(value.to_owned());
    let mut counter = Counter::default();
    counter.set_value(count as f64);
    let mut metric = Metric::default();
    metric.set_label(vec![pair]);
    metric.set_counter(counter);
    metric
}
