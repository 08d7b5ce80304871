//! What policies mean, written down a second time: no index, nothing compiled, one comparison after the other.

use std::net::IpAddr;

use crate::{
    model::Cidr,
    policy::{
        Action, Condition, Facts, Operation, Policy, Posture, Rule, Source,
        normalize::{canonical, host},
    },
};

/// Whether it may pass, and by which policy and rule it may not; the audits.
pub fn decide(
    posture: Posture,
    policies: &[Policy],
    facts: &Facts<'_>,
) -> (Option<String>, Vec<String>) {
    let matching = |action: Action| {
        let policies = policies
            .iter()
            .filter(move |policy| policy.action == action);
        policies.filter_map(move |policy| {
            let mut rules = policy.rules.iter().enumerate();
            let (number, _) = rules.find(|(_, rule)| rule_matches(rule, action, facts))?;
            Some(format!("{}[{number}]", policy.name))
        })
    };
    let audits = matching(Action::Audit).collect();
    if let Some(denied) = matching(Action::Deny).next() {
        return (Some(denied), audits);
    }
    let has_allow = policies.iter().any(|policy| policy.action == Action::Allow);
    let allowed = match has_allow {
        true => matching(Action::Allow).next().is_some(),
        false => posture == Posture::Allow,
    };
    ((!allowed).then(|| "default".to_owned()), audits)
}

fn rule_matches(rule: &Rule, action: Action, facts: &Facts<'_>) -> bool {
    let tcp = facts.http.is_none();
    if tcp && action == Action::Allow && needs_http(rule) {
        return false;
    }
    (rule.from.is_empty()
        || rule
            .from
            .iter()
            .any(|source| source_matches(source, tcp, facts)))
        && (rule.to.is_empty() || rule.to.iter().any(|to| operation_matches(to, tcp, facts)))
        && rule
            .when
            .iter()
            .all(|when| condition_matches(when, action, tcp, facts))
}

fn needs_http(rule: &Rule) -> bool {
    let source = |source: &Source| {
        !source.request_principals.is_empty() || !source.not_request_principals.is_empty()
    };
    let operation = |to: &Operation| {
        let l4 = Operation {
            ports: to.ports.clone(),
            not_ports: to.not_ports.clone(),
            ..Operation::default()
        };
        *to != l4
    };
    rule.from.iter().any(source)
        || rule.to.iter().any(operation)
        || rule
            .when
            .iter()
            .any(|when| when.key.starts_with("request."))
}

fn source_matches(source: &Source, tcp: bool, facts: &Facts<'_>) -> bool {
    let principal = facts.principal.map(|id| id.principal().to_owned());
    let namespace = facts
        .principal
        .and_then(|id| id.namespace())
        .map(str::to_owned);
    let claims = facts.http.and_then(|request| request.claims);
    let token = claims
        .and_then(|claims| claims.principal())
        .map(str::to_owned);
    let blocks = |blocks: &[Cidr]| blocks.iter().any(|block| in_block(block, facts.source_ip));
    one(
        &source.principals,
        &source.not_principals,
        principal.as_deref(),
    ) && one(
        &source.namespaces,
        &source.not_namespaces,
        namespace.as_deref(),
    ) && (source.ip_blocks.is_empty() || blocks(&source.ip_blocks))
        && !blocks(&source.not_ip_blocks)
        && (tcp
            || one(
                &source.request_principals,
                &source.not_request_principals,
                token.as_deref(),
            ))
}

fn operation_matches(to: &Operation, tcp: bool, facts: &Facts<'_>) -> bool {
    let port = facts.destination_port;
    let ports = (to.ports.is_empty() || port.is_some_and(|port| to.ports.contains(&port)))
        && !port.is_some_and(|port| to.not_ports.contains(&port));
    let Some(request) = facts.http else {
        return ports && tcp;
    };
    let some =
        |text: &'static str, value: &str| (!value.is_empty()).then(|| format!("{text}{value}"));
    let method = some("", request.method);
    let asked = some("", request.host);
    let path = some("", request.path);
    let hosts = |hosts: &[String]| -> Vec<String> {
        let lower = |pattern: &String| {
            let bare = pattern.to_lowercase();
            let bare = bare.strip_suffix(":*").unwrap_or(&bare).to_owned();
            if bare.ends_with('*') {
                bare
            } else {
                host(&bare).into_owned()
            }
        };
        hosts.iter().map(lower).collect()
    };
    ports
        && one(&to.methods, &to.not_methods, method.as_deref())
        && one(&hosts(&to.hosts), &hosts(&to.not_hosts), asked.as_deref())
        && (to.paths.is_empty()
            || to
                .paths
                .iter()
                .any(|pattern| path_like(pattern, path.as_deref())))
        && !to
            .not_paths
            .iter()
            .any(|pattern| path_like(pattern, path.as_deref()))
}

fn condition_matches(when: &Condition, action: Action, tcp: bool, facts: &Facts<'_>) -> bool {
    if when.key.starts_with("request.") && tcp {
        return true;
    }
    let text = |text: Option<&str>| text.map(str::to_owned).into_iter().collect::<Vec<_>>();
    let id = facts.principal;
    let claim = |path: &[&str]| {
        let path: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
        let mut found = Vec::new();
        if let Some(claims) = facts.http.and_then(|request| request.claims) {
            claims.each(&path, &mut |text| found.push(text.to_owned()));
        }
        found
    };
    let mut header = false;
    let values: Vec<String> = match when.key.as_str() {
        "source.principal" => text(id.map(|id| id.principal())),
        "source.namespace" => text(id.and_then(|id| id.namespace())),
        "source.ip" => vec![facts.source_ip.to_string()],
        "destination.ip" => facts.destination_ip.iter().map(IpAddr::to_string).collect(),
        "destination.port" => facts.destination_port.iter().map(u16::to_string).collect(),
        "request.auth.principal" => {
            let claims = facts.http.and_then(|request| request.claims);
            text(claims.and_then(|claims| claims.principal()))
        }
        "request.auth.audiences" => claim(&["aud"]),
        "request.auth.presenter" => claim(&["azp"]),
        key => {
            let (start, names) = key.split_once('[').unwrap();
            let names: Vec<&str> = names.trim_end_matches(']').split("][").collect();
            if start == "request.headers" {
                header = true;
                let headers = facts.http.map(|request| request.headers.get_all(names[0]));
                let values = headers.into_iter().flatten();
                values
                    .map(|value| value.to_str().unwrap().to_owned())
                    .collect()
            } else {
                claim(&names)
            }
        }
    };
    let is_one = |patterns: &[String], value: &str| {
        patterns.iter().any(|pattern| {
            let pattern = pattern.strip_prefix("spiffe://").unwrap_or(pattern);
            match pattern.parse::<Cidr>() {
                Ok(block) if when.key.ends_with(".ip") => in_block(&block, value.parse().unwrap()),
                _ => like(pattern, value),
            }
        })
    };
    let allow = action == Action::Allow;
    let positive = when.values.is_empty()
        || (!values.is_empty()
            && match header && allow {
                true => values.iter().all(|value| is_one(&when.values, value)),
                false => values.iter().any(|value| is_one(&when.values, value)),
            });
    let negative = when.not_values.is_empty()
        || match header && !allow {
            true => {
                values.is_empty() || !values.iter().all(|value| is_one(&when.not_values, value))
            }
            false => !values.iter().any(|value| is_one(&when.not_values, value)),
        };
    positive && negative
}

/// Something of `wanted`, if there is any, and nothing of `unwanted`.
fn one(wanted: &[String], unwanted: &[String], value: Option<&str>) -> bool {
    let matches = |patterns: &[String]| {
        value.is_some_and(|value| {
            patterns
                .iter()
                .any(|pattern| like(pattern.strip_prefix("spiffe://").unwrap_or(pattern), value))
        })
    };
    (wanted.is_empty() || matches(wanted)) && !matches(unwanted)
}

fn like(pattern: &str, value: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    match (pattern.strip_suffix('*'), pattern.strip_prefix('*')) {
        (Some(prefix), _) => value.starts_with(prefix),
        (_, Some(suffix)) => value.ends_with(suffix),
        _ => pattern == value,
    }
}

fn path_like(pattern: &str, path: Option<&str>) -> bool {
    let Some(path) = path else {
        return false;
    };
    if !pattern.contains("{*") {
        let stars = (pattern.starts_with('*'), pattern.ends_with('*'));
        let bare = canonical(pattern.trim_matches('*')).into_owned();
        return match stars {
            (true, true) => true,
            (true, false) => path.ends_with(&bare),
            (false, true) => path.starts_with(&bare),
            (false, false) => path == bare,
        };
    }
    // By trying every way to cut.
    fn template(pattern: &str, path: &str) -> bool {
        if let Some(rest) = pattern.strip_prefix("{**}") {
            return (0..=path.len()).any(|at| template(rest, &path[at..]));
        }
        if let Some(rest) = pattern.strip_prefix("{*}") {
            return (1..=path.len())
                .take_while(|at| !path[..*at].contains('/'))
                .any(|at| template(rest, &path[at..]));
        }
        match (pattern.chars().next(), path.chars().next()) {
            (None, None) => true,
            (Some(a), Some(b)) if a == b => template(&pattern[1..], &path[1..]),
            _ => false,
        }
    }
    template(pattern, path)
}

fn in_block(block: &Cidr, ip: IpAddr) -> bool {
    let bits = |ip: IpAddr| match ip.to_canonical() {
        IpAddr::V4(v4) => (
            4,
            v4.octets()
                .iter()
                .map(|byte| format!("{byte:08b}"))
                .collect::<String>(),
        ),
        IpAddr::V6(v6) => (
            6,
            v6.octets()
                .iter()
                .map(|byte| format!("{byte:08b}"))
                .collect(),
        ),
    };
    let ((family, ip), (of_block, start)) = (bits(ip), bits(block.address()));
    family == of_block && ip.starts_with(&start[..usize::from(block.prefix_bits())])
}
