//! `explain`: the way of a connection or request through the configuration, and the verdict, without traffic.

mod report;

use std::{net::IpAddr, process::ExitCode};

use anyhow::Result;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, uri::Authority};

use self::report::{Report, Way};
use super::Usage;
use crate::{
    cli::{Explain, ExplainDirection},
    http::{Asked, asks_for},
    identity::SpiffeId,
    jwt::RequestAuthentication,
    model::{Snapshot, UnknownDestination},
    policy::{Claims, Facts, PolicySet, normalize},
};

/// What `explain` says by its exit code, as grep does.
const DENIED: u8 = 1;

pub fn run(args: Explain) -> Result<ExitCode> {
    let snapshot = super::load(args.config.config.as_deref())?;
    let json = args.json;
    let report = explain(&snapshot, &Question::new(args)?);
    if json {
        println!("{:#}", report.json());
    } else {
        print!("{report}");
    }
    Ok(match report.allowed() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(DENIED),
    })
}

/// The arguments, checked.
struct Question {
    direction: ExplainDirection,
    source: IpAddr,
    principal: Option<SpiffeId>,
    destination: Option<IpAddr>,
    port: u16,
    /// `None`: opaque bytes.
    request: Option<RequestQuestion>,
}

struct RequestQuestion {
    method: Method,
    authority: Option<Authority>,
    uri: Uri,
    headers: HeaderMap,
    claims: Option<Claims>,
}

impl Question {
    fn new(args: Explain) -> Result<Self> {
        let wrong = |what: &str, found: &str| Usage(format!("{what} is not good: {found:?}"));
        let principal = args.principal.as_deref().map(|text| {
            let id = format!(
                "spiffe://{}",
                text.strip_prefix("spiffe://").unwrap_or(text)
            );
            SpiffeId::parse(&id).map_err(|error| Usage(format!("--principal {text}: {error}")))
        });
        let request = match args.tcp {
            true => None,
            false => {
                let mut headers = HeaderMap::new();
                for header in &args.header {
                    let (name, value) = header
                        .split_once(':')
                        .ok_or_else(|| wrong("--header", header))?;
                    let name =
                        HeaderName::try_from(name.trim()).map_err(|_| wrong("--header", header))?;
                    let value = HeaderValue::from_str(value.trim())
                        .map_err(|_| wrong("--header", header))?;
                    headers.append(name, value);
                }
                let claims = args.claims.as_deref().map(|text| {
                    serde_json::from_str(text).map_err(|error| Usage(format!("--claims: {error}")))
                });
                let host = args.host.as_deref();
                let authority =
                    host.map(|host| Authority::try_from(host).map_err(|_| wrong("--host", host)));
                Some(RequestQuestion {
                    method: Method::from_bytes(args.method.as_bytes())
                        .map_err(|_| wrong("--method", &args.method))?,
                    authority: authority.transpose()?,
                    uri: Uri::try_from(&args.path).map_err(|_| wrong("--path", &args.path))?,
                    headers,
                    claims: claims.transpose()?.map(Claims::new),
                })
            }
        };
        Ok(Self {
            direction: args.direction,
            source: args.source,
            principal: principal.transpose()?,
            destination: args.destination,
            port: args.port,
            request,
        })
    }
}

fn explain(snapshot: &Snapshot, question: &Question) -> Report {
    let policies = match question.direction {
        ExplainDirection::Inbound => &snapshot.authorization.inbound,
        ExplainDirection::Outbound => &snapshot.authorization.outbound,
    };
    let mut report = Report::new(question, policies);
    token(&mut report, &snapshot.request_authentication, question);
    let mut facts = Facts {
        source_ip: question.source,
        principal: question.principal.as_ref(),
        destination_ip: question.destination,
        destination_port: Some(question.port),
        http: None,
    };
    let Some(request) = &question.request else {
        report.way = way(snapshot, question, None);
        refuse_unknown(&mut report, snapshot, question);
        return report.decide(policies, &facts);
    };
    let mut uri = request.uri.clone();
    if policies.reads_paths() {
        let how = snapshot.authorization.path_normalization;
        match normalize::path(how, uri.path()).map(|path| path.forward.into_owned()) {
            Ok(path) if path != uri.path() => {
                // What `path` gives is one.
                uri = asks_for(&uri, path).unwrap_or(uri);
                report.normalised = Some(uri.path().to_owned());
            }
            Ok(_) => {}
            Err(why) => report.refuse("path_refused", why),
        }
    }
    report.way = way(snapshot, question, Some(&uri));
    refuse_unknown(&mut report, snapshot, question);
    let authority = request.authority.as_ref();
    match Asked::new(&request.method, &uri, &request.headers, authority) {
        Ok(asked) => {
            facts.http = Some(asked.request(request.claims.as_ref()));
            report.decide(policies, &facts)
        }
        Err(why) => {
            report.refuse("path_refused", why);
            report
        }
    }
}

/// Tokens are not verified here: their claims are given.
fn token(report: &mut Report, authentication: &RequestAuthentication, question: &Question) {
    let claims = question
        .request
        .as_ref()
        .and_then(|request| request.claims.as_ref());
    let inbound = question.direction == ExplainDirection::Inbound;
    if let Some(claims) = claims {
        let issuer = claims
            .principal()
            .and_then(|principal| principal.rsplit_once('/'));
        let known = issuer.is_some_and(|(issuer, _)| {
            authentication
                .rules
                .iter()
                .any(|rule| *rule.issuer == *issuer)
        });
        if !known || !inbound {
            report.note("no rule of requestAuthentication believes the issuer of these claims: such a token is not accepted");
        }
    }
}

/// Where it goes, by the same precedence as traffic.
fn way(snapshot: &Snapshot, question: &Question, uri: Option<&Uri>) -> Way {
    if question.direction == ExplainDirection::Inbound {
        return Way::workload(question.port);
    }
    let authority = question
        .request
        .as_ref()
        .and_then(|request| request.authority.as_ref());
    let host = authority.map(|authority| normalize::host(authority.host()));
    if let (Some(host), Some(uri)) = (&host, uri)
        && let Some((route, rule)) = snapshot.route(host, uri.path())
    {
        return Way::route(route, rule, question.port);
    }
    let destination = question.destination.map(|ip| (ip, question.port).into());
    let by_address = destination.and_then(|destination| snapshot.service_at(destination));
    let by_host = || {
        host.as_deref()
            .and_then(|host| snapshot.service_of_host(host))
    };
    match by_address.or_else(by_host) {
        Some(service) => Way::service(service, question.port),
        None => Way::unknown(destination),
    }
}

fn refuse_unknown(report: &mut Report, snapshot: &Snapshot, question: &Question) {
    let outbound = question.direction == ExplainDirection::Outbound;
    let destination = question.destination.filter(|_| outbound);
    let denied = destination.and_then(|ip| {
        let destination = (ip.to_canonical(), question.port).into();
        snapshot.outbound.denied_by(destination)
    });
    if let Some(rule) = denied {
        let words = format!(
            "rule {} of outbound.deny: connect fails with EPERM",
            rule.name
        );
        report.refuse("egress_denied", &words);
    }
    let refuses = snapshot.outbound.unknown == UnknownDestination::RegistryOnly;
    if outbound && refuses && report.way.is_unknown() {
        report.refuse(
            "destination_refused",
            "no service claims the destination and outbound.unknown is registryOnly",
        );
    }
}

impl Report {
    fn decide(mut self, policies: &PolicySet, facts: &Facts<'_>) -> Self {
        self.considered = policies.explain(facts);
        self.decision = Some(policies.decide(facts));
        self
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{
        cli::{Cli, Command},
        config,
    };

    const CONFIGURATION: &str = "\
outbound: { unknown: registryOnly }
services:
  - { name: orders, addresses: [10.96.0.10], ports: [{ port: 80, protocol: http }], endpoints: [{ address: 10.1.0.2, port: 8080 }] }
routes: [{ name: shop, hostnames: [shop.example], rules: [{ matches: [{ path: { value: /o } }], backendRefs: [{ name: orders }] }] }]
authorization:
  inbound:
    default: deny
    policies:
      - { name: read, rules: [{ to: [{ operation: { methods: [GET] } }] }] }
      - { name: admin, action: DENY, rules: [{ to: [{ operation: { paths: [/admin/*] } }] }] }
      - { name: noted, action: AUDIT, rules: [{ from: [{ source: { namespaces: [a] } }] }] }
";

    fn ask(line: &str) -> Report {
        let words = ["sidecar", "explain"]
            .into_iter()
            .chain(line.split_whitespace());
        let Command::Explain(args) = Cli::try_parse_from(words).unwrap().command else {
            panic!("not explain")
        };
        let snapshot = config::parse("test", CONFIGURATION).unwrap();
        explain(&snapshot, &Question::new(args).unwrap())
    }

    #[test]
    fn the_verdict_is_the_one_of_traffic() {
        for (line, by) in [
            ("--port 8080", None),
            ("--port 8080 --method POST", Some("default")),
            ("--port 8080 --path /x/..//admin/y", Some("admin")),
            ("--port 8080 --path /x%2fy", Some("path_refused")),
            ("--port 8080 --tcp", Some("admin")),
            (
                "--direction outbound --destination 10.96.0.10 --port 80",
                None,
            ),
            (
                "--direction outbound --destination 10.96.0.11 --port 80",
                Some("destination_refused"),
            ),
            (
                "--direction outbound --destination 10.96.0.11 --port 80 --host SHOP.example. --path /o/1",
                None,
            ),
        ] {
            let report = ask(line);
            assert_eq!(report.allowed(), by.is_none(), "{line}: {report}");
            if let Some(by) = by {
                assert!(report.to_string().contains(by), "{line}: {report}");
                assert!(report.json().to_string().contains(by), "{line}");
            }
        }
    }

    #[test]
    fn every_policy_says_why() {
        let report = ask("--port 8080 --method PUT --path /a/../b --principal td/ns/a/sa/x");
        let text = report.to_string();
        for part in [
            "/a/../b",
            "passed on as /b",
            "DENY   admin rules[0]",
            "request.path has to be /admin/*, and it is /b",
            "AUDIT  noted rules[0]",
            "request.method has to be GET, and it is PUT",
            "denied by default",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let json = report.json();
        assert_eq!(json["verdict"], "denied");
        assert_eq!(json["policies"][1]["matched"], true);
        assert_eq!(json["audit"][0], "noted rules[0]");
    }

    #[test]
    fn routes_and_endpoints_are_told() {
        let report = ask("--direction outbound --port 80 --host shop.example --path /o/1");
        let text = report.to_string();
        assert!(
            text.contains("route shop")
                && text.contains("orders")
                && text.contains("10.1.0.2:8080"),
            "{text}"
        );
    }
}
