//! From policies as they are written to conditions over attributes.

use std::fmt;

use super::{
    attribute::{Attribute, Kind},
    facts::Facts,
    normalize,
    pattern::{Path, Text},
    spec::{Action, Condition as Written, Operation, Policy, Rule as WrittenRule, Source},
};
use crate::model::Cidr;

/// One rule. All three parts have to hold.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Position of its policy.
    pub policy: usize,
    /// Position in its policy.
    pub number: usize,
    pub action: Action,
    /// Each a list of alternatives, of which one has to hold; an empty list holds.
    pub from: Vec<Vec<Condition>>,
    pub to: Vec<Vec<Condition>>,
    /// All of them have to hold.
    pub when: Vec<Condition>,
}

/// One attribute compared with some values.
#[derive(Debug, Clone)]
pub struct Condition {
    pub attribute: Attribute,
    pub values: Values,
    /// Holds if no value matches.
    pub negated: bool,
}

#[derive(Debug, Clone)]
pub enum Values {
    Text(Vec<Text>),
    Path(Vec<Path>),
    Ip(Vec<Cidr>),
    Port(Vec<u16>),
}

/// A mistake in a policy that its source should have found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy {policy}: expected {expected}; found {found:?}")]
pub struct CompileError {
    pub policy: String,
    pub expected: String,
    pub found: String,
}

/// The rules of `policies`, in their order.
pub fn rules(policies: &[Policy]) -> Result<Vec<Rule>, CompileError> {
    let mut rules = Vec::new();
    for (at, policy) in policies.iter().enumerate() {
        for (number, written) in policy.rules.iter().enumerate() {
            let compiled = rule(at, number, policy.action, written);
            rules.push(compiled.map_err(|wrong| CompileError {
                policy: policy.name.to_string(),
                expected: wrong.0,
                found: wrong.1,
            })?);
        }
    }
    Ok(rules)
}

impl Rule {
    /// The rule for a connection of which only addresses and identities are known: an ALLOW rule that needs more
    /// never matches (`None`), a DENY or AUDIT rule matches whatever it cannot see.
    pub fn for_tcp(&self) -> Option<Self> {
        let mut rule = self.clone();
        let mut dropped = false;
        let groups = rule.from.iter_mut().chain(&mut rule.to);
        for conditions in groups.chain(std::iter::once(&mut rule.when)) {
            let before = conditions.len();
            conditions.retain(|condition| !condition.attribute.is_http_only());
            dropped |= conditions.len() < before;
        }
        (!dropped || self.action != Action::Allow).then_some(rule)
    }

    pub fn is_http_only(&self) -> bool {
        self.conditions()
            .any(|condition| condition.attribute.is_http_only())
    }

    pub fn conditions(&self) -> impl Iterator<Item = &Condition> {
        let alternatives = self.from.iter().chain(&self.to).flatten();
        alternatives.chain(&self.when)
    }

    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        let all = |conditions: &[Condition]| {
            conditions
                .iter()
                .all(|condition| condition.holds(facts, self.action))
        };
        let one = |alternatives: &[Vec<Condition>]| {
            alternatives.is_empty() || alternatives.iter().any(|conditions| all(conditions))
        };
        all(&self.when) && one(&self.to) && one(&self.from)
    }
}

impl Condition {
    /// A field that was sent several times is read to the client's disadvantage: an ALLOW rule wants all its values
    /// to match, a DENY rule one. Members of a claim's list are alternatives for both.
    pub fn holds(&self, facts: &Facts<'_>, action: Action) -> bool {
        let every = matches!(self.attribute, Attribute::Header(_))
            && (action == Action::Allow) != self.negated;
        self.values_match(facts, every) != self.negated
    }

    fn values_match(&self, facts: &Facts<'_>, every: bool) -> bool {
        match &self.values {
            Values::Text(texts) => self.texts(facts, every, |value| {
                texts.iter().any(|text| text.matches(value))
            }),
            Values::Path(paths) => self.texts(facts, every, |value| {
                paths.iter().any(|path| path.matches(value))
            }),
            Values::Ip(ranges) => self
                .attribute
                .ip(facts)
                .is_some_and(|ip| ranges.iter().any(|range| range.contains(ip))),
            Values::Port(ports) => facts
                .destination_port
                .is_some_and(|port| ports.contains(&port)),
        }
    }

    fn texts(&self, facts: &Facts<'_>, every: bool, matches: impl Fn(&str) -> bool) -> bool {
        let (mut some, mut all, mut any) = (false, true, false);
        self.attribute.each_text(facts, &mut |value| {
            let matched = matches(value);
            some = true;
            all &= matched;
            any |= matched;
        });
        some && if every { all } else { any }
    }
}

/// What was expected, and what there is.
type Wrong = (String, String);

fn rule(
    policy: usize,
    number: usize,
    action: Action,
    written: &WrittenRule,
) -> Result<Rule, Wrong> {
    let from = written.from.iter().map(source).collect::<Result<_, _>>()?;
    let to = written.to.iter().map(operation).collect::<Result<_, _>>()?;
    let mut when = Vec::new();
    for condition in &written.when {
        when.extend(conditions(condition)?);
    }
    Ok(Rule {
        policy,
        number,
        action,
        from,
        to,
        when,
    })
}

fn source(source: &Source) -> Result<Vec<Condition>, Wrong> {
    let mut all = Vec::new();
    for (attribute, values, negated) in [
        (Attribute::Principal, &source.principals, false),
        (Attribute::Principal, &source.not_principals, true),
        (Attribute::Namespace, &source.namespaces, false),
        (Attribute::Namespace, &source.not_namespaces, true),
        (
            Attribute::RequestPrincipal,
            &source.request_principals,
            false,
        ),
        (
            Attribute::RequestPrincipal,
            &source.not_request_principals,
            true,
        ),
    ] {
        all.extend(texts(attribute, values, negated)?);
    }
    for (ranges, negated) in [(&source.ip_blocks, false), (&source.not_ip_blocks, true)] {
        if !ranges.is_empty() {
            all.push(Condition {
                attribute: Attribute::SourceIp,
                values: Values::Ip(ranges.clone()),
                negated,
            });
        }
    }
    not_empty("a source that sets a field", all)
}

fn operation(operation: &Operation) -> Result<Vec<Condition>, Wrong> {
    let mut all = Vec::new();
    for (ports, negated) in [(&operation.ports, false), (&operation.not_ports, true)] {
        if !ports.is_empty() {
            all.push(Condition {
                attribute: Attribute::DestinationPort,
                values: Values::Port(ports.clone()),
                negated,
            });
        }
    }
    for (attribute, values, negated) in [
        (Attribute::Method, &operation.methods, false),
        (Attribute::Method, &operation.not_methods, true),
        (Attribute::Path, &operation.paths, false),
        (Attribute::Path, &operation.not_paths, true),
        (Attribute::Host, &operation.hosts, false),
        (Attribute::Host, &operation.not_hosts, true),
    ] {
        all.extend(texts(attribute, values, negated)?);
    }
    not_empty("an operation that sets a field", all)
}

/// One that is empty by mistake must not match everything.
fn not_empty(expected: &str, all: Vec<Condition>) -> Result<Vec<Condition>, Wrong> {
    if all.is_empty() {
        return Err((expected.to_owned(), "none".to_owned()));
    }
    Ok(all)
}

fn conditions(written: &Written) -> Result<Vec<Condition>, Wrong> {
    let attribute = Attribute::of_key(&written.key).ok_or_else(|| {
        (
            format!("one of the keys {}", Attribute::keys()),
            written.key.clone(),
        )
    })?;
    let mut all = Vec::new();
    all.extend(texts(attribute.clone(), &written.values, false)?);
    all.extend(texts(attribute, &written.not_values, true)?);
    not_empty("values or notValues", all)
}

fn texts(
    attribute: Attribute,
    values: &[String],
    negated: bool,
) -> Result<Option<Condition>, Wrong> {
    if values.is_empty() {
        return Ok(None);
    }
    let mut parsed = match attribute.kind() {
        Kind::Text | Kind::Host => Values::Text(Vec::new()),
        Kind::Path => Values::Path(Vec::new()),
        Kind::Ip => Values::Ip(Vec::new()),
        Kind::Port => Values::Port(Vec::new()),
    };
    for value in values {
        parsed
            .push(&attribute, value)
            .map_err(|expected| (expected.to_owned(), value.clone()))?;
    }
    Ok(Some(Condition {
        attribute,
        values: parsed,
        negated,
    }))
}

/// Checks one value of an attribute.
///
/// # Errors
///
/// What would have been right.
pub fn check_value(attribute: &Attribute, value: &str) -> Result<(), &'static str> {
    let mut parsed = match attribute.kind() {
        Kind::Text | Kind::Host => Values::Text(Vec::new()),
        Kind::Path => Values::Path(Vec::new()),
        Kind::Ip => Values::Ip(Vec::new()),
        Kind::Port => Values::Port(Vec::new()),
    };
    parsed.push(attribute, value)
}

impl Values {
    fn push(&mut self, attribute: &Attribute, value: &str) -> Result<(), &'static str> {
        match self {
            Self::Text(texts) => texts.push(match attribute {
                Attribute::Host => host(value)?,
                Attribute::Principal => {
                    Text::parse(value.strip_prefix("spiffe://").unwrap_or(value))?
                }
                _ => Text::parse(value)?,
            }),
            Self::Path(paths) => paths.push(Path::parse(value)?),
            Self::Ip(ranges) => ranges.push(value.parse()?),
            Self::Port(ports) => {
                let port = value.parse().ok().filter(|port| *port > 0);
                ports.push(port.ok_or("a port from 1 to 65535")?);
            }
        }
        Ok(())
    }
}

/// A port does not take part; `:*`, by which Istio's policies say so, may be there.
fn host(value: &str) -> Result<Text, &'static str> {
    let bare = value.strip_suffix(":*").unwrap_or(value);
    let has_port = bare.contains(':') && !bare.starts_with('[');
    if has_port || bare.contains("]:") {
        return Err("a host without a port: ports compares that");
    }
    let text = Text::parse(bare)?;
    Ok(match &text {
        Text::Exact(_) | Text::Suffix(_) => text.map(|text| normalize::host(text).into_owned()),
        Text::Prefix(_) | Text::Present => text.map(str::to_ascii_lowercase),
    })
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// More than that nobody reads.
        const SHOWN: usize = 8;
        fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, values: &[T]) -> fmt::Result {
            for (at, value) in values.iter().take(SHOWN).enumerate() {
                write!(f, "{}{value}", if at > 0 { ", " } else { "" })?;
            }
            match values.len().saturating_sub(SHOWN) {
                0 => Ok(()),
                more => write!(f, " and {more} more"),
            }
        }
        match self {
            Self::Text(values) => list(f, values),
            Self::Path(values) => list(f, values),
            Self::Ip(values) => list(f, values),
            Self::Port(values) => list(f, values),
        }
    }
}
