//! What a pod says of itself, put over a file that it may share with others: the injector writes it from the pod's
//! annotations. Values replace the file's, exclusions are added to them.

use serde::Deserialize;

use super::{
    error::ConfigError,
    file::{
        File, Lifecycle, Listeners, Workload,
        identity::Identity,
        traffic::{Inbound, InboundPort, Outbound, OutboundExclude, PortExclude},
    },
    scalar::{Marked, Scalar, Setting},
    shape, validate,
    value::Port,
};
use crate::model::{FailRule, InboundCapture};

/// The keys that a pod may set.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Over {
    workload: Option<Workload>,
    identity: Option<Marked<Identity>>,
    outbound: Option<OverOutbound>,
    inbound: Option<OverInbound>,
    fail_rule: Option<Setting<FailRule>>,
    listeners: Option<Listeners>,
    lifecycle: Option<Lifecycle>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct OverOutbound {
    exclude: Option<OutboundExclude>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct OverInbound {
    capture: Option<Setting<InboundCapture>>,
    /// With a capture of `listed`, these and no others; the file may say more of them.
    ports: Option<Vec<InboundPort>>,
    exclude: Option<PortExclude>,
    probe_ports: Option<Vec<Setting<Port>>>,
}

/// # Errors
///
/// Every mistake in it, whatever the file says.
pub(super) fn parse(text: &str) -> Result<Over, Vec<ConfigError>> {
    let read = || shape::parse::<Over>(text).map_err(|error| vec![error]);
    validate::compile(read()?.put_over(File::default()))?;
    read()
}

impl Over {
    pub(super) fn put_over(self, mut file: File) -> File {
        let workload = self.workload.unwrap_or_default();
        let base = file.workload.get_or_insert_default();
        replace(&mut base.name, workload.name);
        replace(&mut base.namespace, workload.namespace);
        replace(&mut base.exclude, workload.exclude);
        replace(&mut file.identity, self.identity);
        let outbound = self.outbound.unwrap_or_default();
        outbound.put_over(file.outbound.get_or_insert_default());
        let inbound = self.inbound.unwrap_or_default();
        inbound.put_over(file.inbound.get_or_insert_default());
        replace(&mut file.fail_rule, self.fail_rule);
        listeners(
            self.listeners.unwrap_or_default(),
            file.listeners.get_or_insert_default(),
        );
        let lifecycle = self.lifecycle.unwrap_or_default();
        let base = file.lifecycle.get_or_insert_default();
        replace(&mut base.exit_when_alone, lifecycle.exit_when_alone);
        replace(&mut base.alone_for, lifecycle.alone_for);
        replace(
            &mut base.wait_for_application,
            lifecycle.wait_for_application,
        );
        file
    }
}

impl OverOutbound {
    fn put_over(self, base: &mut Outbound) {
        let exclude = self.exclude.unwrap_or_default();
        let ports = numbers(exclude.ports.as_ref());
        if let Some(declared) = &mut base.ports {
            declared.retain(|declared| !contains(&ports, &declared.port));
        }
        let base = base.exclude.get_or_insert_default();
        add(&mut base.cidrs, exclude.cidrs);
        add(&mut base.ports, exclude.ports);
    }
}

impl OverInbound {
    fn put_over(self, base: &mut Inbound) {
        replace(&mut base.probe_ports, self.probe_ports);
        let exclude = self.exclude.unwrap_or_default();
        let excluded = numbers(exclude.ports.as_ref());
        add(
            &mut base.exclude.get_or_insert_default().ports,
            exclude.ports,
        );
        let declared = base.ports.get_or_insert_default();
        declared.retain(|declared| !contains(&excluded, &declared.port));
        let listed = self
            .capture
            .as_ref()
            .is_some_and(|capture| matches!(capture.value, Ok(InboundCapture::Listed)));
        replace(&mut base.capture, self.capture);
        let ports = self.ports.unwrap_or_default();
        let own: Vec<u16> = ports
            .iter()
            .filter_map(|entry| number(&entry.port))
            .collect();
        if listed {
            declared.retain(|declared| contains(&own, &declared.port));
        }
        let known: Vec<u16> = declared
            .iter()
            .filter_map(|entry| number(&entry.port))
            .collect();
        declared.extend(
            ports
                .into_iter()
                .filter(|entry| !contains(&known, &entry.port)),
        );
    }
}

fn listeners(over: Listeners, base: &mut Listeners) {
    replace(&mut base.outbound, over.outbound);
    replace(&mut base.steered, over.steered);
    replace(&mut base.inbound, over.inbound);
    replace(&mut base.admin, over.admin);
    replace(&mut base.metrics, over.metrics);
    replace(&mut base.health, over.health);
}

fn replace<T>(base: &mut Option<T>, over: Option<T>) {
    if over.is_some() {
        *base = over;
    }
}

fn add<S: Scalar>(base: &mut Option<Vec<Setting<S>>>, over: Option<Vec<Setting<S>>>) {
    if let Some(over) = over {
        base.get_or_insert_default().extend(over);
    }
}

fn number(port: &Setting<Port>) -> Option<u16> {
    port.value.as_ref().ok().copied()
}

fn numbers(ports: Option<&Vec<Setting<Port>>>) -> Vec<u16> {
    ports.into_iter().flatten().filter_map(number).collect()
}

fn contains(ports: &[u16], port: &Setting<Port>) -> bool {
    number(port).is_some_and(|port| ports.contains(&port))
}
