//! Routes: every rule can be reached and leads to services that exist.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use super::{Report, Unique, service::Services};
use crate::{
    config::{
        error::Mark,
        file::route as file,
        scalar::{Marked, Setting},
        value::PathType,
    },
    model::{Backend, HostMatch, PathMatch, Route, RouteRule},
};

/// As many as Gateway API allows. Every match carries its rule's backends.
const MATCHES_MAX: usize = 64;
/// Gateway API allows 16.
const BACKENDS_MAX: usize = 64;

/// Rules by the requests that reach them: the host, or every host, and the path.
type Reached = Unique<(Option<Arc<HostMatch>>, Arc<PathMatch>)>;

pub(super) fn compile(
    report: &mut Report,
    files: Vec<file::Route>,
    services: &Services,
) -> Vec<Route> {
    let mut names = Unique::default();
    let mut reached = Reached::default();
    let mut routes = Vec::with_capacity(files.len());
    for file in files {
        let mark = file.name.mark;
        let name = report.value(file.name).unwrap_or_default();
        if !name.is_empty() {
            let taken = || ("a name that no other route has", name.clone());
            names.claim(report, name.clone(), mark, taken);
        }
        let hosts = hosts(report, file.hostnames);
        let rules = rules(report, file.rules, services);
        if report.within_bound(mark, hosts.len().max(1).saturating_mul(rules.len())) {
            check_reached(report, &mut reached, &hosts, &rules);
        }
        let mut rules: Vec<RouteRule> = rules.into_iter().map(|(_, rule)| rule).collect();
        rules.sort_by_key(|rule| Reverse(specificity(&rule.path)));
        let name = name.into();
        routes.push(Route { name, hosts, rules });
    }
    routes
}

/// Exact before prefix, longer before shorter; the sort keeps the file's order among equals.
fn specificity(path: &PathMatch) -> usize {
    match path {
        PathMatch::Exact(_) => usize::MAX,
        PathMatch::Prefix(prefix) => prefix.len(),
    }
}

fn hosts(report: &mut Report, list: Option<Vec<Setting<HostMatch>>>) -> Vec<HostMatch> {
    let mut seen = Unique::default();
    let mut hosts = Vec::new();
    for setting in list.unwrap_or_default() {
        let (mark, text) = (setting.mark, setting.text.clone());
        let Some(host) = report.value(setting) else {
            continue;
        };
        let listed = || ("a host that the route does not list yet", text);
        if seen.claim(report, host.clone(), mark, listed) {
            hosts.push(host);
        }
    }
    hosts
}

/// Two rules for the same host and path: the second would never be used.
fn check_reached(
    report: &mut Report,
    reached: &mut Reached,
    hosts: &[HostMatch],
    rules: &[(Mark, RouteRule)],
) {
    let hosts: Vec<_> = match hosts {
        [] => vec![None],
        hosts => hosts
            .iter()
            .map(|host| Some(Arc::new(host.clone())))
            .collect(),
    };
    for (mark, rule) in rules {
        let path = Arc::new(rule.path.clone());
        // One host in conflict says enough about a match.
        hosts.iter().all(|host| {
            let conflict = || {
                let (PathMatch::Exact(path) | PathMatch::Prefix(path)) = &*path;
                let host = host
                    .as_deref()
                    .map_or("every host".to_owned(), ToString::to_string);
                let expected = format!("a match that no earlier rule for {host} has");
                (expected, path.clone())
            };
            reached.claim(report, (host.clone(), path.clone()), *mark, conflict)
        });
    }
}

/// The rules with one match each, and where it stands.
fn rules(
    report: &mut Report,
    list: Marked<Vec<file::Rule>>,
    services: &Services,
) -> Vec<(Mark, RouteRule)> {
    if list.value.is_empty() {
        report.expected(list.mark, "at least one rule", "none");
    }
    let mut rules = Vec::new();
    for file in list.value {
        let rule_mark = file.backend_refs.mark;
        let backends = backends(report, file.backend_refs, services);
        let mut timeout = Duration::ZERO;
        report.set(&mut timeout, file.timeouts.unwrap_or_default().request);
        let request_timeout = Some(timeout).filter(|timeout| !timeout.is_zero());
        for (mark, path) in paths(report, file.matches, rule_mark) {
            let rule = RouteRule {
                path,
                backends: backends.clone(),
                request_timeout,
            };
            rules.push((mark, rule));
        }
    }
    rules
}

fn paths(
    report: &mut Report,
    matches: Option<Marked<Vec<file::Match>>>,
    rule_mark: Mark,
) -> Vec<(Mark, PathMatch)> {
    let every = || PathMatch::Prefix("/".to_owned());
    let Some(Marked { mark, value }) = matches.filter(|matches| !matches.value.is_empty()) else {
        return vec![(rule_mark, every())];
    };
    if value.len() > MATCHES_MAX {
        let expected = format!("at most {MATCHES_MAX} matches in a rule");
        report.expected(mark, expected, &value.len().to_string());
        return Vec::new();
    }
    let mut paths = Vec::with_capacity(value.len());
    for file in value {
        let file = file.path.unwrap_or_default();
        let mark = file.value.as_ref().map_or(mark, |value| value.mark);
        let (mut kind, mut path) = (PathType::Prefix, "/".to_owned());
        let before = report.errors.len();
        report.set(&mut kind, file.kind);
        report.set(&mut path, file.value);
        if report.errors.len() > before {
            continue;
        }
        if kind == PathType::Prefix && path.len() > 1 && path.ends_with('/') {
            path.pop();
        }
        let of_kind = match kind {
            PathType::Exact => PathMatch::Exact(path),
            PathType::Prefix => PathMatch::Prefix(path),
        };
        paths.push((mark, of_kind));
    }
    paths
}

fn backends(
    report: &mut Report,
    list: Marked<Vec<file::BackendRef>>,
    services: &Services,
) -> Vec<Backend> {
    let Marked { mark, value: list } = list;
    if list.is_empty() || list.len() > BACKENDS_MAX {
        let expected = format!("from 1 to {BACKENDS_MAX} backends");
        report.expected(mark, expected, &list.len().to_string());
        return Vec::new();
    }
    let before = report.errors.len();
    let mut backends = Vec::with_capacity(list.len());
    for file in list {
        backends.extend(backend(report, file, services));
    }
    let all_zero = backends.iter().all(|backend: &Backend| backend.weight == 0);
    if all_zero && report.errors.len() == before {
        report.expected(mark, "a backend whose weight is not 0", "only weights of 0");
    }
    backends
}

fn backend(report: &mut Report, file: file::BackendRef, services: &Services) -> Option<Backend> {
    let name_mark = file.name.mark;
    let port_mark = file.port.as_ref().map(|port| port.mark);
    let name = report.value(file.name);
    let port = file.port.and_then(|port| report.value(port));
    let mut weight = 1;
    report.set(&mut weight, file.weight);

    let name = name?;
    let Some(service) = services.named(&name) else {
        let hint = services.nearest(&name);
        let hint = hint.map_or(String::new(), |hint| format!(" (perhaps {hint})"));
        report.expected(name_mark, format!("the name of a service{hint}"), &name);
        return None;
    };
    if let (Some(mark), Some(port)) = (port_mark, port) {
        let listed = service.ports.iter().map(|listed| listed.port.to_string());
        let listed: Vec<String> = listed.take(16).collect();
        let known = service.ports.iter().any(|listed| listed.port == port);
        if !known && !listed.is_empty() {
            let expected = format!("a port of the service {name}: {}", listed.join(", "));
            report.expected(mark, expected, &port.to_string());
        }
    }
    Some(Backend {
        service: service.clone(),
        port,
        weight,
    })
}
