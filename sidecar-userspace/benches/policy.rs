//! What one question to 1,000 rules costs: `cargo bench -p sidecar-userspace policy`. To stay below 2 µs at the median.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use divan::{Bencher, black_box};
use http::{HeaderMap, HeaderValue};
use sidecar_userspace::{
    identity::SpiffeId,
    policy::{
        Action, Claims, Condition, Facts, Operation, PathNormalization, Policy, PolicySet, Posture,
        Request, Rule, Source, normalize,
    },
};

const RULES: usize = 1000;

fn main() {
    divan::main();
}

/// A rule of one of the kinds that policies have in the field.
fn mixed(at: usize) -> Rule {
    let text = |text: String| vec![text];
    let operation = |paths: Vec<String>| Operation {
        methods: vec!["GET".to_owned(), "HEAD".to_owned()],
        paths,
        ..Operation::default()
    };
    let principal = Source {
        principals: text(format!("cluster.local/ns/ns-{}/sa/client-{at}", at % 40)),
        ..Source::default()
    };
    match at % 5 {
        0 => Rule {
            from: vec![principal],
            to: vec![operation(text(format!("/api/v1/resource-{at}")))],
            when: vec![],
        },
        1 => Rule {
            from: vec![Source {
                namespaces: text(format!("ns-{at}")),
                ..Source::default()
            }],
            to: vec![operation(vec![
                format!("/api/v1/tree-{at}/*"),
                format!("/api/v2/{{*}}/tree-{at}/{{**}}"),
            ])],
            when: vec![],
        },
        2 => Rule {
            from: vec![Source {
                ip_blocks: vec![
                    format!("10.{}.{}.0/24", at / 256, at % 256)
                        .parse()
                        .unwrap(),
                ],
                ..Source::default()
            }],
            to: vec![Operation {
                ports: vec![8080, 8081],
                ..Operation::default()
            }],
            when: vec![],
        },
        3 => Rule {
            from: vec![principal],
            to: vec![],
            when: vec![Condition {
                key: "request.headers[x-tenant]".to_owned(),
                values: text(format!("tenant-{at}")),
                not_values: vec![],
            }],
        },
        _ => Rule {
            from: vec![Source {
                request_principals: text(format!("https://issuer.example.org/user-{at}")),
                ..Source::default()
            }],
            to: vec![operation(text(format!("*/export-{at}.csv")))],
            when: vec![Condition {
                key: "request.auth.claims[groups]".to_owned(),
                values: text(format!("group-{}", at % 10)),
                not_values: vec![],
            }],
        },
    }
}

/// Every rule for the same place, told apart by what is compared last.
fn same_path(at: usize) -> Rule {
    Rule {
        from: vec![Source {
            principals: vec![format!("cluster.local/ns/shop/sa/client-{at}")],
            ..Source::default()
        }],
        to: vec![Operation {
            paths: vec!["/api/*".to_owned()],
            ..Operation::default()
        }],
        when: vec![],
    }
}

fn policies(rule: fn(usize) -> Rule) -> PolicySet {
    let policy = |number: usize| Policy {
        name: Arc::from(format!("policy-{number}")),
        action: if number.is_multiple_of(4) {
            Action::Deny
        } else {
            Action::Allow
        },
        rules: (number * 10..number * 10 + 10).map(rule).collect(),
    };
    PolicySet::new(Posture::Deny, (0..RULES / 10).map(policy).collect()).unwrap()
}

struct Question {
    id: SpiffeId,
    headers: HeaderMap,
    claims: Claims,
    path: &'static str,
}

impl Question {
    fn new(client: &str, path: &'static str) -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("user-agent", "curl/8"),
            ("accept", "*/*"),
            ("x-tenant", "tenant-13"),
            ("x-request-id", "5a1f"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let claims = serde_json::json!({
            "iss": "https://issuer.example.org", "sub": "user-9", "groups": ["group-1", "group-9"],
        });
        Self {
            id: SpiffeId::parse(&format!("spiffe://cluster.local/ns/{client}")).unwrap(),
            headers,
            claims: Claims::new(claims.as_object().unwrap().clone()),
            path,
        }
    }

    fn ask(&self, policies: &PolicySet) -> bool {
        let path = normalize::path(PathNormalization::Strict, black_box(self.path)).unwrap();
        let facts = Facts {
            source_ip: "10.200.0.1".parse().unwrap(),
            principal: Some(&self.id),
            destination_ip: Some("10.9.9.9".parse().unwrap()),
            destination_port: Some(8080),
            http: Some(Request {
                method: "GET",
                host: "shop.example.org",
                path: &path.compare,
                headers: &self.headers,
                claims: Some(&self.claims),
            }),
        };
        policies.decide(black_box(&facts)).denied_by.is_none()
    }
}

/// Allowed by a rule in the middle.
#[divan::bench(sample_count = 500, sample_size = 100)]
fn policy_1000_mixed_rules_allowed(bencher: Bencher<'_, '_>) {
    let policies = policies(mixed);
    let question = Question::new("ns-15/sa/client-535", "/api/v1/resource-535");
    assert!(question.ask(&policies));
    bencher.bench_local(|| question.ask(&policies));
}

/// No rule matches: every attribute was looked at.
#[divan::bench(sample_count = 500, sample_size = 100)]
fn policy_1000_mixed_rules_denied(bencher: Bencher<'_, '_>) {
    let policies = policies(mixed);
    let question = Question::new("shop/sa/nobody", "/api/v1/tree-31/a/b");
    assert!(!question.ask(&policies));
    bencher.bench_local(|| question.ask(&policies));
}

/// A path that has to be brought into another spelling first.
#[divan::bench(sample_count = 500, sample_size = 100)]
fn policy_1000_mixed_rules_odd_path(bencher: Bencher<'_, '_>) {
    let policies = policies(mixed);
    let question = Question::new("ns-15/sa/client-535", "/api//v1/x/../%72esource-535");
    assert!(question.ask(&policies));
    bencher.bench_local(|| question.ask(&policies));
}

#[divan::bench(sample_count = 500, sample_size = 100)]
fn policy_1000_rules_for_one_path(bencher: Bencher<'_, '_>) {
    let policies = policies(same_path);
    let question = Question::new("shop/sa/client-999", "/api/orders");
    assert!(question.ask(&policies));
    bencher.bench_local(|| question.ask(&policies));
}
