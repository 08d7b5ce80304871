//! The cases of `table.yaml`.

use std::{collections::BTreeMap, collections::HashSet, net::IpAddr};

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::reference;
use crate::{
    config,
    identity::SpiffeId,
    policy::{Claims, Facts, Request, normalize},
};

const TABLE: &str = include_str!("table.yaml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    group: String,
    /// `authorization` of a configuration.
    policy: String,
    cases: Vec<Case>,
}

/// One question. Without `http` and without any of its fields: a connection.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    id: Option<String>,
    ip: Option<IpAddr>,
    port: Option<u16>,
    method: Option<String>,
    host: Option<String>,
    path: Option<String>,
    headers: Option<BTreeMap<String, Vec<String>>>,
    claims: Option<serde_json::Map<String, serde_json::Value>>,
    #[serde(default)]
    tcp: bool,
    /// `allow`; `400`, if the path is refused; else who denies: `policy[rule]` or `default`.
    is: String,
    #[serde(default)]
    audits: Vec<String>,
}

#[test]
fn every_case_of_the_table() {
    let groups: Vec<Group> = serde_saphyr::from_str(TABLE).unwrap();
    let (mut names, mut wrong) = (HashSet::new(), Vec::new());
    for group in &groups {
        let indented = group.policy.replace('\n', "\n  ");
        let snapshot =
            config::parse(&group.group, &format!("authorization:\n  {indented}\n")).unwrap();
        for case in &group.cases {
            assert!(
                names.insert((&group.group, &case.name)),
                "{} is there twice",
                case.name
            );
            let (is, audits) = answer(case, &snapshot.authorization);
            if is != case.is || audits != case.audits {
                wrong.push(format!("{}: {}: {is} {audits:?}", group.group, case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(names.len() >= 150, "{} cases", names.len());
}

fn answer(case: &Case, authorization: &crate::model::Authorization) -> (String, Vec<String>) {
    let id = case
        .id
        .as_ref()
        .map(|id| SpiffeId::parse(&format!("spiffe://{id}")).unwrap());
    let path = case.path.as_deref().unwrap_or("/");
    let Ok(path) = normalize::path(authorization.path_normalization, path) else {
        return ("400".to_owned(), Vec::new());
    };
    let host = normalize::host(case.host.as_deref().unwrap_or(""));
    let mut headers = HeaderMap::new();
    for (name, values) in case.headers.iter().flatten() {
        for value in values {
            let name = HeaderName::try_from(name).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
    }
    let claims = case.claims.clone().map(Claims::new);
    let facts = Facts {
        source_ip: case.ip.unwrap_or_else(|| "10.0.0.1".parse().unwrap()),
        principal: id.as_ref(),
        destination_ip: Some("10.9.9.9".parse().unwrap()),
        destination_port: Some(case.port.unwrap_or(8080)),
        http: (!case.tcp).then_some(Request {
            method: case.method.as_deref().unwrap_or("GET"),
            host: &host,
            path: &path.compare,
            headers: &headers,
            claims: claims.as_ref(),
        }),
    };
    let policies = &authorization.inbound;
    let decision = policies.decide(&facts);
    let name = |name: &crate::policy::RuleName| match name.rule {
        Some(rule) => format!("{}[{rule}]", name.policy),
        None => name.policy.to_string(),
    };
    let is = decision.denied_by.as_ref().map(name);
    let audits: Vec<String> = decision.audited_by.iter().map(name).collect();
    let naive = reference::decide(policies.posture(), policies.policies(), &facts);
    assert_eq!(
        (is.clone(), audits.clone()),
        naive,
        "{}: not what the reference says",
        case.name
    );
    (is.unwrap_or_else(|| "allow".to_owned()), audits)
}
