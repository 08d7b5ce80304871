//! What must hold between values, and the way from the file to the model.
//!
//! Nothing here stops at the first mistake: a value that is wrong is noted and replaced by its default, so that
//! the rest can be judged too, and the snapshot is dropped in the end.

mod egress;
mod identity;
mod jwt;
mod policy;
mod route;
mod service;

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    thread,
};

use super::{
    error::{ConfigError, Expected, Mark},
    file::{self, File, traffic::PortProtocol},
    scalar::{Scalar, Setting},
    value::Port,
};
use crate::model::{InboundCapture, InboundPort, Protocol, Snapshot};

/// What a configuration may multiply out to: addresses by ports, hosts by paths. Keeps the index within some
/// 100 MiB whatever the file says.
const CLAIMS_MAX: usize = 500_000;

/// # Errors
///
/// Every mistake.
pub(super) fn compile(file: File) -> Result<Snapshot, Vec<ConfigError>> {
    let mut report = Report::default();
    let mut snapshot = Snapshot::builtin();

    let workload = file.workload.unwrap_or_default();
    report.set(&mut snapshot.workload.name, workload.name);
    report.set(&mut snapshot.workload.namespace, workload.namespace);
    let exclude = workload.exclude.unwrap_or_default();
    snapshot.workload.exclude_cgroups = report.values(exclude.cgroups);
    snapshot.identity = identity::compile(&mut report, file.identity);
    outbound(
        &mut report,
        &mut snapshot,
        file.outbound.unwrap_or_default(),
    );
    inbound(&mut report, &mut snapshot, file.inbound.unwrap_or_default());
    redirect(
        &mut report,
        &mut snapshot,
        file.redirect.unwrap_or_default(),
    );
    report.set(&mut snapshot.fail_rule, file.fail_rule);
    listeners(
        &mut report,
        &mut snapshot,
        file.listeners.unwrap_or_default(),
    );
    limits(&mut report, &mut snapshot, file.limits.unwrap_or_default());
    timeouts(
        &mut report,
        &mut snapshot,
        file.timeouts.unwrap_or_default(),
    );
    let lifecycle = file.lifecycle.unwrap_or_default();
    report.set(
        &mut snapshot.lifecycle.exit_when_alone,
        lifecycle.exit_when_alone,
    );
    report.set(&mut snapshot.lifecycle.alone_for, lifecycle.alone_for);
    report.set(
        &mut snapshot.lifecycle.wait_for_application,
        lifecycle.wait_for_application,
    );
    snapshot.authorization = policy::compile(&mut report, file.authorization.unwrap_or_default());
    snapshot.request_authentication =
        jwt::compile(&mut report, file.request_authentication.unwrap_or_default());
    let access_log = file.access_log.unwrap_or_default();
    report.set(&mut snapshot.access_log.format, access_log.format);
    report.set(&mut snapshot.access_log.path, access_log.path);
    if let Some(workers) = file.workers.and_then(|workers| report.value(workers)) {
        snapshot.workers = NonZeroUsize::new(workers).unwrap_or_else(every_cpu);
    }

    let default_connect = snapshot.timeouts.connect;
    let services = service::compile(
        &mut report,
        file.services.unwrap_or_default(),
        default_connect,
        snapshot.identity.is_some(),
    );
    let routes = route::compile(&mut report, file.routes.unwrap_or_default(), &services);
    if report.errors.is_empty() {
        Ok(snapshot.with_services(services.into_list(), routes))
    } else {
        Err(report.errors)
    }
}

fn every_cpu() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

fn outbound(report: &mut Report, snapshot: &mut Snapshot, file: file::traffic::Outbound) {
    let outbound = &mut snapshot.outbound;
    let exclude = file.exclude.unwrap_or_default();
    report.set(&mut outbound.unknown, file.unknown);
    outbound.egress = egress::compile(report, file.deny, file.allow);
    outbound.exclude_cidrs = report.values(exclude.cidrs);
    outbound.exclude_ports = report.values(exclude.ports).into_iter().collect();
    outbound.ports = report.ports(file.ports, &outbound.exclude_ports);
}

fn inbound(report: &mut Report, snapshot: &mut Snapshot, file: file::traffic::Inbound) {
    let inbound = &mut snapshot.inbound;
    let exclude = file.exclude.unwrap_or_default();
    let capture = report.set(&mut inbound.capture, file.capture);
    inbound.exclude_ports = report.values(exclude.ports).into_iter().collect();
    let mut ports = file.ports;
    let has_identity = snapshot.identity.is_some();
    let (general, mtls) = identity::inbound(report, file.mtls, &mut ports, has_identity);
    inbound.mtls = general;
    let ports = ports.map(|ports| ports.into_iter().map(PortProtocol::from).collect());
    let ports = report.ports(ports, &inbound.exclude_ports);
    if let (Some(capture), InboundCapture::Listed, true) =
        (capture, inbound.capture, ports.is_empty())
    {
        report.expected(
            capture,
            "inbound.ports to list some, or another capture",
            "listed",
        );
    }
    let declared = |(port, protocol)| {
        let mtls = mtls.get(&port).copied();
        (port, InboundPort { protocol, mtls })
    };
    inbound.ports = ports.into_iter().map(declared).collect();
}

fn redirect(report: &mut Report, snapshot: &mut Snapshot, file: file::Redirect) {
    let redirect = &mut snapshot.redirect;
    report.set(&mut redirect.enabled, file.enabled);
    report.set(&mut redirect.level, file.level);
    report.set(&mut redirect.adaptive, file.adaptive);
    report.set(&mut redirect.credit_bytes, file.credit);
    let exclude = file.exclude.unwrap_or_default();
    redirect.exclude_ports = report.values(exclude.ports).into_iter().collect();
}

fn listeners(report: &mut Report, snapshot: &mut Snapshot, file: file::Listeners) {
    let listeners = &mut snapshot.listeners;
    let marks = [
        report.set(&mut listeners.outbound, file.outbound),
        report.set(&mut listeners.steered, file.steered),
        report.set(&mut listeners.inbound, file.inbound),
        report.set(&mut listeners.admin, file.admin),
        report.set(&mut listeners.metrics, file.metrics),
        report.set(&mut listeners.health, file.health),
    ];
    if let [Some(_), None, ..] = marks {
        // Several sidecars of one host each have ports of their own.
        let others = [
            0,
            1,
            listeners.inbound,
            listeners.admin,
            listeners.metrics.port(),
            listeners.health.port(),
        ];
        let next = listeners.outbound.checked_add(1);
        listeners.steered = next.filter(|next| !others.contains(next)).unwrap_or(0);
    }
    let ports = [
        ("outbound", listeners.outbound),
        ("steered", listeners.steered),
        ("inbound", listeners.inbound),
        ("admin", listeners.admin),
        ("metrics", listeners.metrics.port()),
        ("health", listeners.health.port()),
    ];
    // Those that the file does not set come first: the blame is on the line that the file has.
    let mut taken = BTreeMap::new();
    let (set, unset): (Vec<_>, Vec<_>) = ports
        .iter()
        .zip(marks)
        .partition(|(_, mark)| mark.is_some());
    for ((name, port), mark) in unset.into_iter().chain(set) {
        let first = *taken.entry(*port).or_insert(*name);
        if let (Some(mark), true) = (mark, first != *name && *port != 0) {
            let expected = format!("a port other than that of listeners.{first}");
            report.expected(mark, expected, &port.to_string());
        }
    }
}

fn limits(report: &mut Report, snapshot: &mut Snapshot, file: file::Limits) {
    let limits = &mut snapshot.limits;
    if let Some(connections) = file.connections {
        limits.connections = report.value(connections);
    }
    report.set(&mut limits.header_bytes, file.header_bytes);
    report.set(&mut limits.headers, file.headers);
    report.set(&mut limits.buffer_bytes, file.buffer_bytes);
    let idle = file.idle_connections_per_endpoint;
    report.set(&mut limits.idle_connections_per_endpoint, idle);
}

fn timeouts(report: &mut Report, snapshot: &mut Snapshot, file: file::Timeouts) {
    let timeouts = &mut snapshot.timeouts;
    report.set(&mut timeouts.connect, file.connect);
    report.set(&mut timeouts.idle, file.idle);
    report.set(&mut timeouts.request_head, file.request_head);
    report.set(&mut timeouts.http_idle, file.http_idle);
    report.set(&mut timeouts.tls_handshake, file.tls_handshake);
    report.set(&mut timeouts.keepalive, file.keepalive);
    report.set(&mut timeouts.user, file.user);
    report.set(&mut timeouts.drain, file.drain);
}

/// The mistakes so far.
#[derive(Default)]
struct Report {
    errors: Vec<ConfigError>,
    /// Of [`CLAIMS_MAX`], how many are used up.
    claims: usize,
}

impl Report {
    fn expected(&mut self, mark: Mark, expected: impl Into<String>, found: &str) {
        self.errors
            .push(ConfigError::expected(mark, expected, found));
    }

    /// The value of `setting`, or `None` and a note of what is wrong with it.
    fn value<S: Scalar>(&mut self, setting: Setting<S>) -> Option<S::Value> {
        let Setting { mark, text, value } = setting;
        let wrong = |expected: Expected| self.expected(mark, expected, &text);
        value.map_err(wrong).ok()
    }

    /// Replaces `slot` by the value of `setting`, if it has a good one, and says where it stands.
    fn set<S: Scalar>(&mut self, slot: &mut S::Value, setting: Option<Setting<S>>) -> Option<Mark> {
        let setting = setting?;
        let mark = setting.mark;
        *slot = self.value(setting)?;
        Some(mark)
    }

    fn values<S: Scalar>(&mut self, settings: Option<Vec<Setting<S>>>) -> Vec<S::Value> {
        let settings = settings.unwrap_or_default().into_iter();
        settings.filter_map(|setting| self.value(setting)).collect()
    }

    /// Ports with their protocols, each once and not among `excluded`.
    fn ports(
        &mut self,
        list: Option<Vec<PortProtocol>>,
        excluded: &BTreeSet<u16>,
    ) -> BTreeMap<u16, Protocol> {
        let mut ports = BTreeMap::new();
        let mut seen = Unique::default();
        for entry in list.unwrap_or_default() {
            let mark = entry.port.mark;
            let mut protocol = Protocol::Auto;
            self.set(&mut protocol, entry.protocol);
            let Some(port) = self.value::<Port>(entry.port) else {
                continue;
            };
            if excluded.contains(&port) {
                self.expected(mark, "a port that is not excluded", &port.to_string());
            }
            if seen.claim(self, port, mark, || {
                ("a port that is not listed yet", port.to_string())
            }) {
                ports.insert(port, protocol);
            }
        }
        ports
    }

    /// Whether `claims` more are within the bound; notes it at `mark` when they are not.
    fn within_bound(&mut self, mark: Mark, claims: usize) -> bool {
        let before = self.claims <= CLAIMS_MAX;
        self.claims = self.claims.saturating_add(claims);
        let within = self.claims <= CLAIMS_MAX;
        if before && !within {
            let expected = format!(
                "at most {CLAIMS_MAX} combinations of address and port, host and path in the whole file"
            );
            self.expected(mark, expected, &self.claims.to_string());
        }
        within
    }
}

/// Who was first to claim each key.
struct Unique<K>(std::collections::HashMap<K, Mark>);

impl<K> Default for Unique<K> {
    fn default() -> Self {
        Self(std::collections::HashMap::new())
    }
}

impl<K: std::hash::Hash + Eq> Unique<K> {
    /// Whether `key` was free; else notes at `mark` what `describe` says: what was expected and what is there.
    fn claim<E: std::fmt::Display>(
        &mut self,
        report: &mut Report,
        key: K,
        mark: Mark,
        describe: impl FnOnce() -> (E, String),
    ) -> bool {
        use std::collections::hash_map::Entry;
        match self.0.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(mark);
                true
            }
            Entry::Occupied(first) => {
                let Mark { line, column } = first.get();
                let (expected, found) = describe();
                report.expected(mark, format!("{expected} (see {line}:{column})"), &found);
                false
            }
        }
    }
}
