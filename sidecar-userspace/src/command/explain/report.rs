//! What `explain` found, for people and as JSON.

use std::{fmt, net::SocketAddr};

use serde_json::{Value, json};

use super::Question;
use crate::{
    cli::ExplainDirection,
    model::{Endpoint, EndpointAddress, Route, RouteRule, Service},
    policy::{Considered, Decision, PolicySet, Posture},
};

pub(super) struct Report {
    /// The question in one line.
    question: String,
    direction: &'static str,
    /// The path that is passed on, where it is another one.
    pub normalised: Option<String>,
    pub way: Way,
    notes: Vec<&'static str>,
    /// Refused before policies were asked: reason and words.
    refused: Option<(&'static str, String)>,
    posture: Posture,
    default_allows: bool,
    pub considered: Vec<Considered>,
    pub decision: Option<Decision>,
}

/// Where it goes.
#[derive(Default)]
pub(super) struct Way {
    words: String,
    route: Option<String>,
    services: Vec<String>,
    endpoints: Vec<String>,
    unknown: bool,
}

impl Way {
    pub fn workload(port: u16) -> Self {
        Self {
            words: format!("the workload, port {port}"),
            ..Self::default()
        }
    }

    pub fn route(route: &Route, rule: &RouteRule, port: u16) -> Self {
        let path = match &rule.path {
            crate::model::PathMatch::Exact(path) => format!("exactly {path}"),
            crate::model::PathMatch::Prefix(path) => format!("{path} and below"),
        };
        let mut way = Self {
            words: format!("route {} ({path})", route.name),
            route: Some(route.name.to_string()),
            ..Self::default()
        };
        let backends = rule.backends.iter().filter(|backend| backend.weight > 0);
        backends.for_each(|backend| way.add(&backend.service, backend.port.unwrap_or(port)));
        way
    }

    pub fn service(service: &Service, port: u16) -> Self {
        let mut way = Self {
            words: format!("service {}", service.name),
            ..Self::default()
        };
        way.add(service, port);
        way
    }

    pub fn unknown(destination: Option<SocketAddr>) -> Self {
        let asked = destination.map_or("the address asked for".to_owned(), |address| {
            address.to_string()
        });
        Self {
            words: format!("{asked}, which no service claims"),
            unknown: true,
            ..Self::default()
        }
    }

    pub fn is_unknown(&self) -> bool {
        self.unknown
    }

    fn add(&mut self, service: &Service, port: u16) {
        self.services.push(service.name.to_string());
        let taking = service
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.weight > 0);
        self.endpoints
            .extend(taking.map(|endpoint| address(endpoint, port)));
    }
}

fn address(endpoint: &Endpoint, port: u16) -> String {
    let port = endpoint.port.unwrap_or(port);
    match &endpoint.address {
        EndpointAddress::Ip(ip) => SocketAddr::new(*ip, port).to_string(),
        EndpointAddress::Name(name) => format!("{name}:{port}"),
    }
}

impl Report {
    pub fn new(question: &Question, policies: &PolicySet) -> Self {
        let direction = match question.direction {
            ExplainDirection::Inbound => "inbound",
            ExplainDirection::Outbound => "outbound",
        };
        let what = match &question.request {
            None => "TCP connection".to_owned(),
            Some(request) => {
                let host = request
                    .authority
                    .as_ref()
                    .map_or("", |authority| authority.as_str());
                format!("{} {host}{}", request.method, request.uri.path())
            }
        };
        let id = question
            .principal
            .as_ref()
            .map_or("without an identity", |id| id.principal());
        let to = question
            .destination
            .map_or(String::new(), |ip| format!("{ip} "));
        Self {
            question: format!(
                "{direction} {what}, from {} ({id}), to {to}port {}",
                question.source, question.port
            ),
            direction,
            normalised: None,
            way: Way::default(),
            notes: Vec::new(),
            refused: None,
            posture: policies.posture(),
            default_allows: policies.allows_by_default(),
            considered: Vec::new(),
            decision: None,
        }
    }

    /// The first refusal counts, as with traffic.
    pub fn refuse(&mut self, reason: &'static str, words: &str) {
        self.refused.get_or_insert((reason, words.to_owned()));
    }

    pub fn note(&mut self, note: &'static str) {
        self.notes.push(note);
    }

    pub fn allowed(&self) -> bool {
        let decided = self
            .decision
            .as_ref()
            .is_some_and(|decision| decision.denied_by.is_none());
        self.refused.is_none() && decided
    }

    pub fn json(&self) -> Value {
        let rule = |considered: &Considered| {
            json!({
                "policy": &*considered.policy,
                "action": considered.action.name(),
                "rule": considered.rule,
                "matched": considered.matched,
                "why": considered.why,
            })
        };
        let denied_by = self.denied_by();
        json!({
            "direction": self.direction,
            "question": self.question,
            "path": self.normalised,
            "route": self.way.route,
            "services": self.way.services,
            "endpoints": self.way.endpoints,
            "notes": self.notes,
            "policies": self.considered.iter().map(rule).collect::<Value>(),
            "audit": self.audits(),
            "verdict": if self.allowed() { "allowed" } else { "denied" },
            "reason": match (&self.refused, denied_by) {
                (Some((reason, _)), _) => Some(*reason),
                (None, Some(_)) => Some("policy_denied"),
                (None, None) => None,
            },
            "policy": denied_by.map(|rule| &*rule.policy),
            "rule": denied_by.and_then(|rule| rule.rule),
        })
    }

    fn denied_by(&self) -> Option<&crate::policy::RuleName> {
        self.decision.as_ref()?.denied_by.as_ref()
    }

    fn audits(&self) -> Vec<String> {
        let audited = self
            .decision
            .iter()
            .flat_map(|decision| &decision.audited_by);
        audited.map(ToString::to_string).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.question)?;
        if let Some(path) = &self.normalised {
            writeln!(f, "  path     passed on as {path}")?;
        }
        writeln!(f, "  way      {}", self.way.words)?;
        for (name, list) in [
            ("service", &self.way.services),
            ("endpoint", &self.way.endpoints),
        ] {
            for each in list {
                writeln!(f, "  {name:<8} {each}")?;
            }
        }
        for note in &self.notes {
            writeln!(f, "  note     {note}")?;
        }
        for considered in &self.considered {
            let rule = considered
                .rule
                .map_or(String::new(), |rule| format!(" rules[{rule}]"));
            let matched = if considered.matched { "matches" } else { "no" };
            let (action, policy) = (considered.action.name(), &considered.policy);
            writeln!(
                f,
                "  {action:<6} {policy}{rule}: {matched}: {}",
                considered.why
            )?;
        }
        let posture = match (self.default_allows, self.posture) {
            (true, _) => "allow: there is no ALLOW policy",
            (false, Posture::Deny) => "deny: what no ALLOW policy matches",
            (false, Posture::Allow) => {
                "deny: there are ALLOW policies, and what none matches is refused"
            }
        };
        writeln!(f, "  default  {posture}")?;
        match (&self.refused, self.denied_by()) {
            (Some((reason, words)), _) => writeln!(f, "denied: {reason}: {words}"),
            (None, Some(rule)) => writeln!(f, "denied by {rule}"),
            (None, None) => writeln!(f, "allowed"),
        }
    }
}
