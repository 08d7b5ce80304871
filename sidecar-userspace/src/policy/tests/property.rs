//! The engine against the naive evaluator, on random policies and random questions.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::json;

use super::reference;
use crate::{
    identity::SpiffeId,
    policy::{
        Action, Claims, Condition, Facts, Operation, Policy, PolicySet, Posture, Request, Rule,
        RuleName, Source,
    },
};

// Few values, so that rules and questions meet.
const TEXTS: &[&str] = &["a", "a*", "*b", "ab*", "*", "b", "ab"];
const IDS: &[&str] = &["td/ns/a/sa/a", "td/ns/ab/sa/b", "td/b", "x/ns/b/sa/ab"];
const PRINCIPALS: &[&str] = &[
    "*",
    "td/*",
    "*/sa/b",
    "td/ns/a/sa/a",
    "spiffe://td/b",
    "x/ns/*",
];
const PATHS: &[&str] = &[
    "/a", "/a/*", "*/b", "/a/{*}", "/{*}/b", "/a/{**}", "/{**}/b", "*", "/a/b", "/*",
];
const ASKED: &[&str] = &["/", "/a", "/a/b", "/b", "/a/b/b", "/ab", "/a/", ""];
const BLOCKS: &[&str] = &[
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.3",
    "::/0",
    "fd00::/8",
    "0.0.0.0/0",
];
const IPS: &[&str] = &[
    "10.1.2.3",
    "10.1.9.9",
    "10.9.9.9",
    "192.0.2.1",
    "fd00::1",
    "::ffff:10.1.2.3",
];

fn texts(from: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    let some = vec(select(from).prop_map(str::to_owned), 1..3);
    prop_oneof![2 => Just(Vec::new()), 1 => some]
}

fn blocks() -> impl Strategy<Value = Vec<crate::model::Cidr>> {
    texts(BLOCKS).prop_map(|texts| texts.iter().map(|text| text.parse().unwrap()).collect())
}

fn ports() -> impl Strategy<Value = Vec<u16>> {
    prop_oneof![2 => Just(Vec::new()), 1 => vec(1_u16..4, 1..3)]
}

fn source() -> impl Strategy<Value = Source> {
    let lists = (
        texts(PRINCIPALS),
        texts(PRINCIPALS),
        texts(TEXTS),
        texts(TEXTS),
        blocks(),
        blocks(),
        texts(&["i/a", "i/*", "*"]),
        texts(&["i/b", "*/a"]),
    );
    lists
        .prop_map(|lists| Source {
            principals: lists.0,
            not_principals: lists.1,
            namespaces: lists.2,
            not_namespaces: lists.3,
            ip_blocks: lists.4,
            not_ip_blocks: lists.5,
            request_principals: lists.6,
            not_request_principals: lists.7,
        })
        .prop_filter("not empty", |source| *source != Source::default())
}

fn operation() -> impl Strategy<Value = Operation> {
    let lists = (
        texts(TEXTS),
        texts(TEXTS),
        ports(),
        ports(),
        texts(TEXTS),
        texts(TEXTS),
        texts(PATHS),
        texts(PATHS),
    );
    lists
        .prop_map(|lists| Operation {
            hosts: lists.0,
            not_hosts: lists.1,
            ports: lists.2,
            not_ports: lists.3,
            methods: lists.4,
            not_methods: lists.5,
            paths: lists.6,
            not_paths: lists.7,
        })
        .prop_filter("not empty", |operation| *operation != Operation::default())
}

fn condition() -> impl Strategy<Value = Condition> {
    const KEYS: &[&str] = &[
        "request.headers[h]",
        "request.auth.claims[c]",
        "request.auth.claims[o][i]",
        "request.auth.audiences",
        "source.namespace",
        "request.auth.claims[scope]",
    ];
    let by_text = (select(KEYS), texts(TEXTS), texts(TEXTS));
    let by_address = (
        select(&["source.ip", "destination.ip"][..]),
        texts(BLOCKS),
        texts(BLOCKS),
    );
    let by_port = (Just("destination.port"), texts(&["1", "2"]), texts(&["3"]));
    prop_oneof![3 => by_text, 1 => by_address, 1 => by_port]
        .prop_map(|(key, values, not_values)| Condition {
            key: key.to_owned(),
            values,
            not_values,
        })
        .prop_filter("not empty", |when| {
            !when.values.is_empty() || !when.not_values.is_empty()
        })
}

fn policies() -> impl Strategy<Value = Vec<Policy>> {
    let rule = (
        vec(source(), 0..3),
        vec(operation(), 0..3),
        vec(condition(), 0..3),
    )
        .prop_map(|(from, to, when)| Rule { from, to, when });
    let action = select(&[Action::Allow, Action::Deny, Action::Audit][..]);
    let policies = vec((action, vec(rule, 0..4)), 0..8);
    policies.prop_map(|list| {
        let named = list.into_iter().enumerate();
        named
            .map(|(at, (action, rules))| Policy {
                name: Arc::from(format!("p{at}")),
                action,
                rules,
            })
            .collect()
    })
}

fn claims() -> impl Strategy<Value = Claims> {
    let values = vec(select(&["a", "b", "ab", "xb"][..]), 5);
    values.prop_map(|v| {
        let all = json!({
            "iss": "i", "sub": v[0], "c": [v[1], v[2]], "o": { "i": v[3] }, "aud": v[4],
            "scope": format!("{} {}", v[1], v[3]),
        });
        Claims::new(all.as_object().unwrap().clone())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_engine_decides_as_the_reference(
        policies in policies(),
        deny in any::<bool>(),
        id in option::of(select(IDS)),
        ip in select(IPS),
        port in option::of(1_u16..4),
        tcp in prop::bool::weighted(0.2),
        asked in (select(&["a", "b", "ab", ""][..]), select(&["a", "b", "xb"][..]), select(ASKED)),
        headers in vec(select(&["a", "b", "ab", "c"][..]), 0..3),
        claims in option::of(claims()),
    ) {
        let posture = if deny { Posture::Deny } else { Posture::Allow };
        let set = PolicySet::new(posture, policies.clone()).unwrap();
        let id = id.map(|id| SpiffeId::parse(&format!("spiffe://{id}")).unwrap());
        let mut map = HeaderMap::new();
        for value in headers {
            map.append("h", HeaderValue::from_static(value));
        }
        let facts = Facts {
            source_ip: ip.parse().unwrap(),
            principal: id.as_ref(),
            destination_ip: port.map(|_| "10.1.2.3".parse().unwrap()),
            destination_port: port,
            http: (!tcp).then_some(Request {
                host: asked.0,
                method: asked.1,
                path: asked.2,
                headers: &map,
                claims: claims.as_ref(),
            }),
        };
        let decision = set.decide(&facts);
        let name = |name: &RuleName| match name.rule {
            Some(rule) => format!("{}[{rule}]", name.policy),
            None => name.policy.to_string(),
        };
        let denied = decision.denied_by.as_ref().map(name);
        let audits: Vec<String> = decision.audited_by.iter().map(name).collect();
        prop_assert_eq!((denied, audits), reference::decide(posture, &policies, &facts));
        // What is explained is what is decided.
        let explained = set.explain(&facts);
        let rules: usize = policies.iter().map(|policy| policy.rules.len().max(1)).sum();
        prop_assert_eq!(explained.len(), rules);
        let first = |action| explained.iter().find(|each| each.action == action && each.matched);
        if let Some(by) = &decision.denied_by && let Some(rule) = by.rule {
            let considered = first(Action::Deny).unwrap();
            prop_assert_eq!((&considered.policy, considered.rule), (&by.policy, Some(rule)));
        } else {
            prop_assert!(first(Action::Deny).is_none());
        }
        for each in &explained {
            prop_assert_eq!(each.matched, each.why == "all of it matches", "{}", each.why);
        }
    }
}
