//! Policies: each can be told from the others, and none matches everything by mistake.

use super::{Report, Unique};
use crate::{
    config::{
        error::Mark,
        file::authorization as file,
        scalar::{Marked, Scalar, Setting},
    },
    model::Authorization,
    policy::{
        self, Action, Condition, DEFAULT, Operation, Policy, PolicySet, Posture, Rule, Source,
        attribute::Attribute,
    },
};

pub(super) fn compile(report: &mut Report, file: file::Authorization) -> Authorization {
    let mut authorization = Authorization::default();
    report.set(
        &mut authorization.path_normalization,
        file.path_normalization,
    );
    let mut names = Unique::default();
    for (slot, section) in [
        (&mut authorization.inbound, file.inbound),
        (&mut authorization.outbound, file.outbound),
    ] {
        if let Some(section) = section {
            *slot = self::section(report, &mut names, section);
        }
    }
    authorization
}

fn section(
    report: &mut Report,
    names: &mut Unique<String>,
    file: file::PolicySection,
) -> PolicySet {
    let mark = file.default.mark;
    let posture = report.value(file.default).unwrap_or(Posture::Deny);
    let mut policies = Vec::new();
    for file in file.policies.unwrap_or_default() {
        policies.push(policy(report, names, file));
    }
    if !report.errors.is_empty() {
        return PolicySet::open();
    }
    PolicySet::new(posture, policies).unwrap_or_else(|error| {
        // Everything was checked with its own place before.
        report.expected(mark, error.expected, &error.found);
        PolicySet::open()
    })
}

fn policy(report: &mut Report, names: &mut Unique<String>, file: file::Policy) -> Policy {
    let mark = file.name.mark;
    let name = report.value(file.name).unwrap_or_default();
    if name == DEFAULT {
        let expected = "another name: this one stands for refusals because no policy matched";
        report.expected(mark, expected, &name);
    }
    if !name.is_empty() {
        let taken = || ("a name that no other policy has", name.clone());
        names.claim(report, name.clone(), mark, taken);
    }
    let mut action = Action::Allow;
    report.set(&mut action, file.action);
    let rules = file.rules.unwrap_or_default().into_iter();
    Policy {
        name: name.into(),
        action,
        rules: rules.map(|file| rule(report, file)).collect(),
    }
}

fn rule(report: &mut Report, file: file::PolicyRule) -> Rule {
    let from = list(report, file.from, "source", |report, file: file::From| {
        source(report, file.source)
    });
    let to = list(report, file.to, "operation", |report, file: file::To| {
        operation(report, file.operation)
    });
    let when = list(report, file.when, "condition", condition);
    Rule { from, to, when }
}

/// Of a list that is there and empty it is not clear whether it means nothing or everything.
pub(super) fn list<F, T>(
    report: &mut Report,
    list: Option<Marked<Vec<F>>>,
    what: &str,
    mut compile: impl FnMut(&mut Report, F) -> T,
) -> Vec<T> {
    let Some(Marked { mark, value }) = list else {
        return Vec::new();
    };
    if value.is_empty() {
        report.expected(mark, format!("at least one {what}, or no list"), "none");
    }
    value
        .into_iter()
        .map(|file| compile(report, file))
        .collect()
}

pub(super) fn values<S: Scalar>(
    report: &mut Report,
    settings: Option<Marked<Vec<Setting<S>>>>,
) -> Vec<S::Value> {
    let values = list(report, settings, "value", |report, setting| {
        report.value(setting)
    });
    values.into_iter().flatten().collect()
}

fn source(report: &mut Report, file: Marked<file::Source>) -> Source {
    let Marked { mark, value: file } = file;
    let before = report.errors.len();
    let source = Source {
        principals: values(report, file.principals),
        not_principals: values(report, file.not_principals),
        namespaces: values(report, file.namespaces),
        not_namespaces: values(report, file.not_namespaces),
        ip_blocks: values(report, file.ip_blocks),
        not_ip_blocks: values(report, file.not_ip_blocks),
        request_principals: values(report, file.request_principals),
        not_request_principals: values(report, file.not_request_principals),
    };
    not_empty(
        report,
        before,
        mark,
        source == Source::default(),
        "a source",
    );
    source
}

fn operation(report: &mut Report, file: Marked<file::Operation>) -> Operation {
    let Marked { mark, value: file } = file;
    let before = report.errors.len();
    let operation = Operation {
        hosts: values(report, file.hosts),
        not_hosts: values(report, file.not_hosts),
        ports: values(report, file.ports),
        not_ports: values(report, file.not_ports),
        methods: values(report, file.methods),
        not_methods: values(report, file.not_methods),
        paths: values(report, file.paths),
        not_paths: values(report, file.not_paths),
    };
    let empty = operation == Operation::default();
    not_empty(report, before, mark, empty, "an operation");
    operation
}

fn not_empty(report: &mut Report, before: usize, mark: Mark, empty: bool, what: &str) {
    if empty && report.errors.len() == before {
        let expected = format!("{what} with at least one key; leave it out to match everything");
        report.expected(mark, expected, "none");
    }
}

fn condition(report: &mut Report, file: file::When) -> Condition {
    let (mark, key) = (file.key.mark, file.key.text.clone());
    let before = report.errors.len();
    let attribute = report.value(file.key);
    let mut condition = Condition {
        key,
        values: compared(report, attribute.as_ref(), file.values),
        not_values: Vec::new(),
    };
    condition.not_values = compared(report, attribute.as_ref(), file.not_values);
    let empty = condition.values.is_empty() && condition.not_values.is_empty();
    if empty && report.errors.len() == before {
        report.expected(mark, "values or notValues beside the key", &condition.key);
    }
    condition
}

fn compared<S: Scalar<Value = String>>(
    report: &mut Report,
    attribute: Option<&Attribute>,
    settings: Option<Marked<Vec<Setting<S>>>>,
) -> Vec<String> {
    list(report, settings, "value", |report, setting| {
        let (mark, text) = (setting.mark, setting.text.clone());
        let wrong = attribute.and_then(|attribute| policy::check_value(attribute, &text).err());
        if let Some(expected) = wrong {
            report.expected(mark, expected, &text);
        }
        report.value(setting).unwrap_or_default()
    })
}
