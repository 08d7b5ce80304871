//! Rules for destinations: none matches everything by mistake, and each exception is one from something.

use super::{Report, Unique, policy::values};
use crate::{
    config::{error::Mark, file::traffic, value::Port},
    model::{Cidr, Egress, EgressRule, IpProtocol},
};

type Names = Unique<String>;

pub(super) fn compile(
    report: &mut Report,
    deny: Option<Vec<traffic::EgressRule>>,
    allow: Option<Vec<traffic::EgressRule>>,
) -> Egress {
    let mut names = Names::default();
    let mut egress = Egress::default();
    for file in deny.unwrap_or_default() {
        egress.deny.push(rule(report, &mut names, file).0);
    }
    for file in allow.unwrap_or_default() {
        let before = report.errors.len();
        let (rule, mark) = rule(report, &mut names, file);
        let useful = egress.deny.iter().any(|wide| rule.is_within(wide));
        if !useful && report.errors.len() == before {
            let expected = "a rule that is within one of outbound.deny, from which it is an exception: its range, and ports and \
                            protocols where that names some";
            report.expected(mark, expected, &rule.name);
        }
        egress.allow.push(rule);
    }
    egress
}

fn rule(report: &mut Report, names: &mut Names, file: traffic::EgressRule) -> (EgressRule, Mark) {
    let mark = file.name.mark;
    let before = report.errors.len();
    let name = report.value(file.name).unwrap_or_default();
    if !name.is_empty() {
        let taken = || ("a name that no other rule has", name.clone());
        names.claim(report, name.clone(), mark, taken);
    }
    let rule = EgressRule {
        cidrs: values::<Cidr>(report, file.cidrs),
        ports: values::<Port>(report, file.ports).into_iter().collect(),
        protocols: values::<IpProtocol>(report, file.protocols)
            .into_iter()
            .collect(),
        name: name.into(),
    };
    let everything = rule.cidrs.is_empty() && rule.ports.is_empty() && rule.protocols.is_empty();
    if report.errors.len() == before {
        if everything {
            let expected = "cidrs, ports or protocols beside the name";
            report.expected(mark, expected, &rule.name);
        }
        let portless = rule.protocols.iter().find(|protocol| !protocol.has_ports());
        if let Some(protocol) = portless.filter(|_| !rule.ports.is_empty()) {
            let expected = format!("no ports beside {protocol}, which has none");
            report.expected(mark, expected, &rule.name);
        }
    }
    let entries = rule
        .cidrs
        .len()
        .max(1)
        .saturating_mul(rule.ports.len().max(1));
    report.within_bound(mark, entries.saturating_mul(rule.protocols.len().max(1)));
    (rule, mark)
}
