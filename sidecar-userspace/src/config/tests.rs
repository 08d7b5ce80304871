//! Files and what becomes of them: the model, or every mistake with its place.

use std::{net::SocketAddr, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::model::{
    AccessLogFormat, Endpoint, EndpointAddress, FailRule, HostMatch, InboundCapture, IpProtocol,
    Mtls, PathMatch, Protocol, ServiceTls, UnknownDestination,
};

/// All mistakes in `text`, as a user sees them.
fn errors(text: &str) -> String {
    match parse("f", text) {
        Ok(_) => String::new(),
        Err(errors) => errors.to_string(),
    }
}

#[track_caller]
fn assert_errors(text: &str, expected: &[&str]) {
    assert_eq!(errors(text).lines().collect::<Vec<_>>(), expected, "{text}");
}

#[test]
fn no_settings_are_the_built_in_ones() {
    let all_empty = "workload:\noutbound:\ninbound:\nservices:\nroutes:\nredirect:\nfailRule:\n\
                     listeners:\nlimits:\ntimeouts:\naccessLog:\nworkers:\n";
    for text in [
        "",
        "\n",
        "# nothing\n",
        "---\n",
        "{}",
        "~",
        "\u{feff}",
        all_empty,
    ] {
        assert_eq!(parse("f", text).unwrap(), Snapshot::builtin(), "{text:?}");
    }
}

#[test]
fn every_setting_reaches_the_model() {
    let snapshot = parse("f", include_str!("tests/full.yaml")).unwrap();
    assert_eq!(snapshot.workload.name, "shop");
    assert_eq!(snapshot.workload.namespace, "prod");
    let excluded: Vec<_> = snapshot
        .workload
        .exclude_cgroups
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(excluded, ["batch", "jobs/*"]);
    assert_eq!(snapshot.outbound.unknown, UnknownDestination::RegistryOnly);
    assert_eq!(
        snapshot.outbound.exclude_cidrs[0].to_string(),
        "169.254.169.254/32"
    );
    assert!(snapshot.outbound.exclude_ports.contains(&22));
    assert_eq!(snapshot.outbound.ports[&5432], Protocol::Tcp);
    assert_eq!(snapshot.inbound.capture, InboundCapture::Listed);
    assert_eq!(snapshot.inbound.ports[&8080].protocol, Protocol::Http);
    let identity = snapshot.identity.as_ref().unwrap();
    assert_eq!(identity.min_version, crate::tls::MinVersion::Tls12);
    assert_eq!(
        identity.federation[0].trust_domain.as_str(),
        "partner.example"
    );
    let inbound = &snapshot.inbound;
    assert_eq!(
        (inbound.mtls(8080), inbound.mtls(1)),
        (Mtls::Strict, Mtls::Permissive)
    );
    let tls = snapshot.service_named("orders").unwrap().tls.as_deref();
    let identities = vec!["spiffe://td/ns/prod/sa/orders".parse().unwrap()];
    let tunnel = false;
    assert_eq!(tls, Some(&ServiceTls::Mesh { identities, tunnel }));
    assert!(snapshot.inbound.exclude_ports.contains(&9100));
    assert_eq!(snapshot.inbound.probe_ports, Some([8080].into()));
    assert!(!snapshot.redirect.enabled);
    assert_eq!(snapshot.redirect.credit_bytes, 64 * 1024);
    assert!(snapshot.redirect.exclude_ports.contains(&3306));
    assert_eq!(snapshot.fail_rule, FailRule::Open);
    let listeners = &snapshot.listeners;
    assert_eq!(
        (listeners.outbound, listeners.inbound, listeners.admin),
        (1, 2, 3)
    );
    assert_eq!(listeners.metrics, "0.0.0.0:0".parse().unwrap());
    assert_eq!(listeners.health, "127.0.0.1:4".parse().unwrap());
    let limits = &snapshot.limits;
    assert_eq!(
        (limits.connections, limits.header_bytes, limits.headers),
        (Some(5), 8192, 6)
    );
    assert_eq!(
        (limits.buffer_bytes, limits.idle_connections_per_endpoint),
        (2048, 7)
    );
    let timeouts = &snapshot.timeouts;
    assert_eq!(timeouts.connect, Duration::from_millis(8));
    assert_eq!(timeouts.idle, Duration::ZERO);
    assert_eq!(timeouts.request_head, Duration::from_secs(90));
    assert_eq!(timeouts.http_idle, Duration::from_secs(10));
    assert_eq!(timeouts.tls_handshake, Duration::from_secs(14));
    assert_eq!(timeouts.keepalive, Duration::from_secs(11));
    assert_eq!(timeouts.user, Duration::from_secs(17));
    assert_eq!(timeouts.drain, Duration::from_secs(13));
    assert_eq!(snapshot.access_log.format, AccessLogFormat::Text);
    assert_eq!(snapshot.access_log.path, Path::new("/var/log/a"));
    assert_eq!(snapshot.workers.get(), 3);

    let orders = snapshot.service_named("orders").unwrap();
    assert_eq!(orders.hosts, ["orders", "orders.prod.svc"]);
    assert_eq!(orders.connect_timeout, Duration::from_secs(1));
    let endpoint = |address, port, weight| Endpoint {
        address,
        port,
        weight,
    };
    assert_eq!(
        orders.endpoints,
        [
            endpoint(
                EndpointAddress::Ip("10.1.0.2".parse().unwrap()),
                Some(8080),
                2
            ),
            endpoint(EndpointAddress::Name("orders-1.internal".into()), None, 1),
        ]
    );
    let at = |address: &str| snapshot.service_at(address.parse::<SocketAddr>().unwrap());
    assert_eq!(at("10.96.0.10:80"), Some(orders));
    assert_eq!(at("10.96.0.10:81"), None);
    assert_eq!(at("10.1.0.2:8080"), Some(orders));
    assert_eq!(orders.protocol(80), Protocol::Http2);
    assert_eq!(orders.protocol(8080), Protocol::Http2);
    let bare = snapshot.service_named("bare").unwrap();
    assert_eq!(bare.hosts, ["bare"]);
    assert_eq!(bare.connect_timeout, timeouts.connect);

    let (route, rule) = snapshot.route("a.example.org", "/orders/1").unwrap();
    assert_eq!(&*route.name, "shop");
    assert_eq!(route.hosts[1], HostMatch::Suffix(".example.org".into()));
    assert_eq!(rule.path, PathMatch::Prefix("/orders".into()));
    assert_eq!(rule.request_timeout, Some(Duration::from_secs(10)));
    assert_eq!(rule.backends[0].service, *orders);
    assert_eq!(
        (rule.backends[0].port, rule.backends[0].weight),
        (Some(80), 9)
    );
    let (_, exact) = snapshot.route("shop.example.org", "/orders").unwrap();
    assert_eq!(exact.path, PathMatch::Exact("/orders".into()));
    assert_eq!(exact.request_timeout, None);
    let (_, rest) = snapshot.route("shop.example.org", "/").unwrap();
    assert_eq!(rest.path, PathMatch::Prefix("/".into()));
}

#[test]
fn all_mistakes_are_reported_at_once_in_order() {
    let text = "\
outbound:
  unknown: passthru
  exclude: { cidrs: [10.0.0.1/8, 10.0.0.0/33, ten], ports: [0, 65536, -1] }
timeouts: { connect: 5, idle: 0s, drain: 0s, keepalive: 99999h }
redirect: { credit: 8GiB, enabled: yes }
limits: { connections: 0, headerBytes: 1KiB }
failRule: \"\\e[31m\"
";
    let port = "expected a whole number from 1 to 65535; found";
    let duration = "expected a duration such as 500ms, 10s or 1m30s, from";
    assert_errors(
        text,
        &[
            r#"f:2:12: expected one of passthrough, registryOnly; found "passthru""#,
            r#"f:3:22: expected zeros beyond the prefix, as in 10.0.0.0/8; found "10.0.0.1/8""#,
            r#"f:3:34: expected a prefix length from /0 to /32; found "10.0.0.0/33""#,
            r#"f:3:47: expected an address or a range of addresses such as 10.0.0.0/8; found "ten""#,
            &format!(r#"f:3:61: {port} "0""#),
            &format!(r#"f:3:64: {port} "65536""#),
            &format!(r#"f:3:71: {port} "-1""#),
            &format!(r#"f:4:22: {duration} 1ms to 24h; found "5""#),
            &format!(r#"f:4:42: {duration} 1ms to 1h; found "0s""#),
            &format!(r#"f:4:57: {duration} 1s to 9h6m7s; found "99999h""#),
            r#"f:5:21: expected a size such as 256KiB, 64KB or 4096, from 1 to 1GiB; found "8GiB""#,
            r#"f:5:36: expected true or false; found "yes""#,
            r#"f:6:24: expected a whole number from 1 to 10000000; found "0""#,
            r#"f:6:40: expected a size such as 256KiB, 64KB or 4096, from 8KiB to 16MiB; found "1KiB""#,
            r#"f:7:11: expected one of closed, open; found "\u{1b}[31m""#,
        ],
    );
}

#[test]
fn policies_match_nothing_by_mistake() {
    let text = "\
authorization:
  inbound:
    default: perhaps
    policies:
      - name: default
      - { name: a, action: BLOCK, rules: [{ from: [] }, { from: [{ source: {} }] }] }
      - { name: a, rules: [{ to: [{ operation: { methods: [], paths: [/a?b, '/{*}x', ''] } }] }] }
      - name: b
        rules:
          - from: [{ source: { ipBlocks: [10.0.0.1/8], principals: ['*a*'] } }]
            to: [{ operation: { hosts: ['a:80'], ports: [0] } }]
            when:
              - { key: request.method, values: [GET] }
              - { key: source.ip }
              - { key: source.ip, values: [ten], notValues: [] }
              - { key: destination.port, values: [http] }
";
    let template =
        "expected a template such as /a/{*}/b/{**}: whole segments, {**} last, no other * or brace";
    let keys = crate::policy::attribute::Attribute::keys();
    assert_errors(
        text,
        &[
            r#"f:3:14: expected one of allow, deny; found "perhaps""#,
            r#"f:5:15: expected another name: this one stands for refusals because no policy matched; found "default""#,
            r#"f:6:28: expected one of ALLOW, DENY, AUDIT; found "BLOCK""#,
            r#"f:6:51: expected at least one source, or no list; found "none""#,
            r#"f:6:76: expected a source with at least one key; leave it out to match everything; found "none""#,
            r#"f:7:17: expected a name that no other policy has (see 6:17); found "a""#,
            r#"f:7:59: expected at least one value, or no list; found "none""#,
            r#"f:7:71: expected a path without ? and #: the query is not compared; found "/a?b""#,
            &format!(r#"f:7:77: {template}; found "/{{*}}x""#),
            r#"f:7:86: expected a text that is not empty, with a * at one end at most; found """#,
            r#"f:10:43: expected zeros beyond the prefix, as in 10.0.0.0/8; found "10.0.0.1/8""#,
            r#"f:10:69: expected a text with a * at one end at most; found "*a*""#,
            r#"f:11:41: expected a host without a port: ports compares that; found "a:80""#,
            r#"f:11:58: expected a whole number from 1 to 65535; found "0""#,
            &format!(r#"f:13:24: expected one of {keys}; found "request.method""#),
            r#"f:14:24: expected values or notValues beside the key; found "source.ip""#,
            r#"f:15:44: expected an address or a range such as 10.0.0.0/8; found "ten""#,
            r#"f:15:61: expected at least one value, or no list; found "none""#,
            r#"f:16:51: expected a port from 1 to 65535; found "http""#,
        ],
    );
}

#[test]
fn rules_for_destinations_mean_something() {
    assert_errors(
        r#"
outbound:
  deny:
    - { name: nothing }
    - { name: pings, protocols: [ICMP, 58], ports: [7] }
    - { name: odd, protocols: [TCP, tcp, 0, 256] }
    - { name: odd, cidrs: [10.0.0.0/8] }
"#,
        &[
            r#"f:4:15: expected cidrs, ports or protocols beside the name; found "nothing""#,
            r#"f:5:15: expected no ports beside ICMP, which has none; found "pings""#,
            r#"f:6:37: expected one of TCP, UDP, SCTP, DCCP, UDPLITE, ICMP, ICMPV6, or the number of an IP protocol from 1 to 255; found "tcp""#,
            r#"f:6:42: expected one of TCP, UDP, SCTP, DCCP, UDPLITE, ICMP, ICMPV6, or the number of an IP protocol from 1 to 255; found "0""#,
            r#"f:6:45: expected one of TCP, UDP, SCTP, DCCP, UDPLITE, ICMP, ICMPV6, or the number of an IP protocol from 1 to 255; found "256""#,
            r#"f:7:15: expected a name that no other rule has (see 6:15); found "odd""#,
        ],
    );
    assert_errors(
        r#"
outbound:
  deny:
    - { name: ten, cidrs: [10.0.0.0/8] }
    - { name: mail, ports: [25], protocols: [TCP] }
  allow:
    - { name: dns, ports: [53] }
    - { name: relay, cidrs: [10.1.0.0/16], ports: [25], protocols: [TCP] }
    - { name: range, cidrs: [10.1.0.0/16] }
    - { name: mail, cidrs: [10.2.0.0/16], ports: [25] }
"#,
        &[
            r#"f:7:15: expected a rule that is within one of outbound.deny, from which it is an exception: its range, and ports and protocols where that names some; found "dns""#,
            r#"f:10:15: expected a name that no other rule has (see 5:15); found "mail""#,
        ],
    );
}

#[test]
fn services_do_not_get_into_each_others_way() {
    let text = "\
services:
  - name: a
    hosts: [x, X., -y, 'x:80', a..b]
    addresses: [10.0.0.1, 10.0.0.0/24, '::ffff:10.0.0.1']
    ports: [{ port: 80 }, { port: 80, protocol: htpp }]
  - name: b
    hosts: [x]
    addresses: [10.0.0.1/32]
    ports: [{ port: 80 }]
    endpoints: [{ address: 1.2.3, weight: 0 }, { address: 0.0.0.0 }]
  - { name: a }
  - { name: b!, endpoints: [{ address: c, weight: 0 }, { address: d, weight: 0 }] }
  - { name: c, addresses: [10.0.0.2] }
";
    let host = "expected a host name such as orders.example.org, without a port; found";
    assert_errors(
        text,
        &[
            r#"f:3:16: expected a host that no service has yet (see 3:13); found "x""#,
            &format!(r#"f:3:20: {host} "-y""#),
            &format!(r#"f:3:24: {host} "x:80""#),
            &format!(r#"f:3:32: {host} "a..b""#),
            r#"f:4:40: expected an IPv4 address, not one mapped into IPv6; found "::ffff:10.0.0.1""#,
            r#"f:5:35: expected a port that is not listed yet (see 5:21); found "80""#,
            r#"f:5:49: expected one of auto, tcp, http, http2, grpc; found "htpp""#,
            r#"f:7:13: expected a host that no service has yet (see 3:13); found "x""#,
            r#"f:8:17: expected an address that no service has on port 80 yet (see 4:17); found "10.0.0.1/32""#,
            r#"f:10:28: expected an address such as 10.1.0.2 or a host name, without a port; found "1.2.3""#,
            r#"f:10:59: expected an address that can be connected to; found "0.0.0.0""#,
            r#"f:11:13: expected a name that no other service has (see 2:11); found "a""#,
            r#"f:12:13: expected a name of at most 253 letters, digits, '-', '_' and '.', with a letter or digit at both ends; found "b!""#,
            r#"f:12:28: expected an endpoint whose weight is not 0; found "only weights of 0""#,
            r#"f:13:27: expected ports beside the addresses, since a service claims addresses on its ports only; found "no ports""#,
        ],
    );
}

#[test]
fn routes_lead_somewhere_and_can_be_reached() {
    let text = "\
services: [{ name: orders, ports: [{ port: 80 }, { port: 443 }] }]
routes:
  - name: r
    hostnames: ['*', '*.', 'a.*.b', '*.x.org', '*.X.org.', x:80]
    rules:
      - matches: [{ path: { type: Regex, value: orders } }, { path: { value: /a } }]
        backendRefs: [{ name: order, port: 80 }, { name: orders, port: 81, weight: 0 }]
      - matches: [{ path: { value: /a/ } }]
        backendRefs: []
  - name: r
    hostnames: [y.org, '*.x.org']
    rules:
      - matches: [{ path: { value: /a } }, { path: { type: Exact, value: /a } }]
        backendRefs: [{ name: orders, weight: 0 }]
        timeouts: { request: -1s }
  - { name: s, rules: [] }
  - { name: t, rules: [{ backendRefs: [{ name: orders }] }, { backendRefs: [{ name: orders }] }] }
";
    let host =
        "expected a host name such as shop.example.org or *.example.org, without a port; found";
    assert_errors(
        text,
        &[
            r#"f:4:17: expected a host name; leave out hostnames for every host; found "*""#,
            &format!(r#"f:4:22: {host} "*.""#),
            &format!(r#"f:4:28: {host} "a.*.b""#),
            r#"f:4:48: expected a host that the route does not list yet (see 4:37); found "*.X.org.""#,
            &format!(r#"f:4:60: {host} "x:80""#),
            r#"f:6:35: expected one of PathPrefix, Exact; found "Regex""#,
            r#"f:6:49: expected a path such as /orders: a slash in front, at most 1024 characters, escaped where needed, without //, /./, /../, ? and #; found "orders""#,
            r#"f:7:31: expected the name of a service (perhaps orders); found "order""#,
            r#"f:7:72: expected a port of the service orders: 80, 443; found "81""#,
            r#"f:8:36: expected a match that no earlier rule for *.x.org has (see 6:78); found "/a""#,
            r#"f:9:22: expected from 1 to 64 backends; found "0""#,
            r#"f:10:11: expected a name that no other route has (see 3:11); found "r""#,
            r#"f:13:36: expected a match that no earlier rule for *.x.org has (see 6:78); found "/a""#,
            r#"f:14:22: expected a backend whose weight is not 0; found "only weights of 0""#,
            r#"f:15:30: expected a duration such as 500ms, 10s or 1m30s, from 0s to 24h; found "-1s""#,
            r#"f:16:23: expected at least one rule; found "none""#,
            r#"f:17:76: expected a match that no earlier rule for every host has (see 17:39); found "/""#,
        ],
    );
}

#[test]
fn settings_do_not_contradict_each_other() {
    let text = "\
outbound: { exclude: { ports: [22] }, ports: [{ port: 22, protocol: tcp }] }
inbound: { capture: listed, exclude: { ports: [80] } }
listeners: { outbound: 15006, admin: 9, metrics: '0.0.0.0:9', health: 0, inbound: 0 }
";
    assert_errors(
        text,
        &[
            r#"f:1:55: expected a port that is not excluded; found "22""#,
            r#"f:2:21: expected inbound.ports to list some, or another capture; found "listed""#,
            r#"f:3:50: expected a port other than that of listeners.admin; found "9""#,
        ],
    );
    // The blame is on the one that the file has, not on the default that it collides with.
    assert_errors(
        "listeners: { inbound: 15001 }",
        &[r#"f:1:23: expected a port other than that of listeners.outbound; found "15001""#],
    );
}

#[test]
fn a_shape_that_is_wrong_is_explained() {
    for (text, expected) in [
        (
            "outbound: 3",
            r#"f:1:11: expected keys with values, as in { key: value }; found "3""#,
        ),
        (
            "services: {}",
            r#"f:1:11: expected a list, as in [a, b]; found "{}""#,
        ),
        (
            "services: [1, 2]",
            r#"f:1:12: expected keys with values, as in { key: value }; found "1""#,
        ),
        (
            "outbound: { unknown: [a] }",
            r#"f:1:22: expected a single value; found "[a] }""#,
        ),
        (
            "services: [{ name: ~ }]",
            r#"f:1:20: expected a value; found "~""#,
        ),
        (
            "services:\n- ports: []",
            "f:2:3: expected the key name, which is missing",
        ),
        (
            "inbound:\n  prots: []",
            r#"f:2:3: expected one of the keys capture, mtls, ports, exclude, probePorts (perhaps ports); found "prots""#,
        ),
        (
            "failRule: open\nfailRule: open",
            "f:2:1: duplicate mapping key `failRule` is not allowed here",
        ),
        ("failRule: *x", "f:1:11: reference to unknown value"),
        ("failRule: \"open", "f:1:11: unclosed quote"),
        (
            "{}\n---\n{}",
            "f:3:1: only single YAML document expected but multiple found",
        ),
    ] {
        assert_errors(text, &[expected]);
    }
}

#[test]
fn an_alias_is_blamed_where_it_stands() {
    let text = "workload: { name: &x a/b }\nservices: [{ name: *x }]\n";
    let places: Vec<_> = parse("f", text)
        .unwrap_err()
        .errors()
        .iter()
        .map(|e| e.line)
        .collect();
    assert_eq!(places, [Some(1), Some(2)]);
}

#[test]
fn nothing_asks_for_an_identity_that_is_not_configured() {
    assert_errors(
        "inbound:\n  mtls: strict\n  ports: [{ port: 1, mtls: disable }, { port: 2, mtls: permissive }]\n\
         services:\n  - name: a\n    tls: { mode: mesh }\n",
        &[
            "f:2:9: expected the section identity, which mutual TLS needs; found \"none\"",
            "f:3:56: expected the section identity, which mutual TLS needs; found \"none\"",
            "f:6:10: expected the section identity, which mutual TLS needs; found \"none\"",
            "f:6:10: expected subjectAltNames, the identities that the endpoints may have; found \"none\"",
        ],
    );
    assert_errors(
        "identity: {}\n",
        &["f:1:11: expected one of files, ca, workloadApi; found \"none\""],
    );
    assert_errors(
        "services:\n  - name: a\n    tls: { mode: mutual, clientCertificate: /c }\n  - name: b\n    tls: { mode: simple, subjectAltNames: [spiffe://td/a] }\n",
        &[
            "f:3:10: expected clientCertificate and privateKey; found \"not both\"",
            "f:5:10: expected sni, as servers outside the mesh are known by name; found \"subjectAltNames\"",
        ],
    );
    let secured = parse("f", "identity: { ca: { directory: /ca } }").unwrap();
    assert_eq!(secured.inbound.mtls(80), Mtls::Permissive);
    assert_eq!(Snapshot::builtin().inbound.mtls(80), Mtls::Disable);
}

#[test]
fn the_keys_of_an_issuer_are_in_one_place() {
    let url = "expected a URL with http or https, a host and no user, such as https://issuer.example/keys";
    let text = |rule: &str| {
        format!("requestAuthentication:\n  jwtRules:\n    - {{ issuer: i, {rule} }}\n")
    };
    for (rule, expected) in [
        ("jwksUri: 'https://a/k'", ""),
        ("jwksUri: 'http://a:81/k'", ""),
        ("jwksUri: 'https://a/k', jwksCaCertificates: /r", ""),
        ("fromParams: [t]", "one of jwks, jwksFile and jwksUri"),
        (
            "jwksUri: 'https://a/k', jwks: '{}'",
            "one of jwks, jwksFile and jwksUri",
        ),
        ("jwksUri: 'https://u:p@a/k'", url),
        ("jwksUri: 'file:///k'", url),
        (
            "jwksUri: 'http://a/k', jwksCaCertificates: /r",
            "a jwksUri with https beside it",
        ),
    ] {
        match parse("f", &text(rule)) {
            Ok(_) => assert_eq!(expected, "", "{rule}"),
            Err(errors) => {
                let said = errors.to_string();
                assert!(
                    !expected.is_empty() && said.contains(expected),
                    "{rule}: {said}"
                );
            }
        }
    }
}

#[test]
fn errors_can_be_read_by_programs() {
    let refused = parse("f.yaml", "failRule: ajar\n").unwrap_err();
    assert_eq!(
        serde_json::to_value(&refused).unwrap(),
        serde_json::json!({ "file": "f.yaml", "errors": [{
            "line": 1, "column": 11, "expected": "one of closed, open", "found": "ajar",
            "message": "expected one of closed, open; found \"ajar\"",
        }] })
    );
    let missing = load(Path::new("/nonexistent/f.yaml"))
        .unwrap_err()
        .to_string();
    assert!(
        missing.starts_with("/nonexistent/f.yaml: cannot read the configuration: No such"),
        "{missing}"
    );
    let many = format!(
        "outbound: {{ exclude: {{ ports: [{}] }} }}",
        "0, ".repeat(60)
    );
    assert!(errors(&many).ends_with("f: 10 more errors"));
}

#[test]
fn bombs_are_defused() {
    let mut aliases = "x0: &x0 [a, a, a, a, a, a, a, a, a]\n".to_owned();
    for level in 1..12 {
        let below = format!("*x{}, ", level - 1).repeat(9);
        aliases += &format!("x{level}: &x{level} [{below}]\n");
    }
    let addresses: Vec<String> = (0..1_000)
        .map(|n| format!("10.0.{}.{}", n / 256, n % 256))
        .collect();
    let ports: Vec<String> = (1..=1_000).map(|n| format!("{{ port: {n} }}")).collect();
    let product = format!(
        "services: [{{ name: a, addresses: [{}], ports: [{}] }}]",
        addresses.join(", "),
        ports.join(", ")
    );
    let replayed = format!(
        "services: [{{ name: a, endpoints: &e [{}] }}, {}]",
        "{ address: b }, ".repeat(1_000),
        "{ name: a, endpoints: *e }, ".repeat(900),
    );
    for text in [
        aliases,
        product,
        replayed,
        "[".repeat(1_000_000),
        "{a: ".repeat(1_000_000),
        "- ".repeat(1_000_000),
        format!("failRule: {}", "9".repeat(5_000_000)),
        "--- {}\n".repeat(100_000),
    ] {
        assert!(!errors(&text).is_empty(), "{:.40}", text);
    }
}

/// Pieces of which mutations are made: what the grammar and the checks care about.
const PIECES: [&str; 24] = [
    "0",
    "-1",
    "18446744073709551616",
    "99999h",
    "1e999",
    ".nan",
    "~",
    "null",
    "[",
    "]",
    "{",
    "}",
    ": ",
    "- ",
    "\n",
    "  ",
    "\"",
    "&a ",
    "*a",
    "<<: ",
    "!!binary ",
    "::/129",
    "é\u{0}\u{202e}",
    "|\n",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = errors(&text);
    }

    #[test]
    fn no_mutation_panics(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..12_usize, 0..PIECES.len()), 1..6)
    ) {
        let mut text: Vec<char> = include_str!("tests/full.yaml").chars().collect();
        for (at, length, piece) in cuts {
            let start = at.index(text.len());
            let end = (start + length).min(text.len());
            text.splice(start..end, PIECES[piece].chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(errors) = parse("f", &text) {
            prop_assert!(!errors.errors().is_empty());
            prop_assert!(!errors.to_string().chars().any(|c| c.is_control() && c != '\n'), "{}", errors);
        }
    }

    #[test]
    fn no_value_panics(key in prop::sample::select(VALUES.to_vec()), value in ".{0,40}") {
        let quoted = serde_json::to_string(&value).unwrap();
        let _ = errors(&key.replace('$', &quoted));
    }
}

/// One place for each kind of value.
const VALUES: [&str; 18] = [
    "requestAuthentication: { jwtRules: [{ issuer: a, jwksUri: $ }] }",
    "identity: { workloadApi: { socket: $ } }",
    "services: [{ name: a, tls: { mode: simple, sni: $ } }]",
    "identity: { ca: { directory: /ca, id: $ } }",
    "identity: { files: { certificate: /a, privateKey: /b, trustBundle: /c }, federation: [{ trustDomain: $ }] }",
    "services: [{ name: a, tls: { mode: mesh, subjectAltNames: [$] } }]",
    "workload: { name: $ }",
    "outbound: { exclude: { cidrs: [$] } }",
    "outbound: { exclude: { ports: [$] } }",
    "services: [{ name: a, hosts: [$] }]",
    "services: [{ name: a, endpoints: [{ address: $ }] }]",
    "{ services: [{ name: a }], routes: [{ name: r, hostnames: [$], rules: [{ backendRefs: [{ name: a }] }] }] }",
    "{ services: [{ name: a }], routes: [{ name: r, rules: \
     [{ matches: [{ path: { value: $ } }], backendRefs: [{ name: a }] }] }] }",
    "redirect: { credit: $ }",
    "timeouts: { idle: $ }",
    "listeners: { metrics: $ }",
    "accessLog: { path: $ }",
    "inbound: { capture: $ }",
];

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");

#[test]
fn the_examples_are_good() {
    let mut count = 0;
    for entry in std::fs::read_dir(Path::new(DEPLOY).join("examples")).unwrap() {
        let path = entry.unwrap().path();
        load(&path).unwrap_or_else(|errors| panic!("{errors}"));
        count += 1;
    }
    assert!(count >= 3, "{count} examples");
    let tcp = load(&Path::new(DEPLOY).join("examples/tcp.yaml")).unwrap();
    let database = tcp.service_at("10.96.0.20:5432".parse().unwrap()).unwrap();
    assert_eq!(database.protocol(5432), Protocol::Tcp);
    let routes = load(&Path::new(DEPLOY).join("examples/routes.yaml")).unwrap();
    let (_, rule) = routes.route("eu.shop.example.org", "/favicon.ico").unwrap();
    assert_eq!(&*rule.backends[0].service.name, "images");
    let egress = load(&Path::new(DEPLOY).join("examples/egress.yaml")).unwrap();
    let egress = &egress.outbound.egress;
    for (to, protocol, denied) in [
        ("10.96.0.10:53", 17, false),
        ("10.96.0.10:53", 6, false),
        ("[fd00:10:96::a]:53", 17, false),
        ("10.96.0.20:5432", 6, false),
        ("10.96.0.10:53", 132, true),
        ("10.96.0.10:0", 1, true),
        ("10.96.0.20:5432", 17, true),
        ("10.96.0.11:53", 17, true),
        ("[2001:db8::1]:53", 17, true),
        ("127.0.0.53:53", 17, false),
    ] {
        let by = egress.denied_by(to.parse().unwrap(), IpProtocol(protocol));
        assert_eq!(by.is_some(), denied, "{to} by {protocol}");
    }
}

/// Keys that exclude one which the reference example has.
const INSTEAD_OF_OTHERS: &[&str] = &["jwksFile", "jwksUri", "jwksCaCertificates"];

/// Each key of the schema, and what the reference example says there: it must have it, and if there is a default,
/// have that.
fn check_complete(path: &str, schema: &serde_json::Value, example: Option<&serde_json::Value>) {
    let example = example.unwrap_or_else(|| panic!("deploy/sidecar.yaml has no {path}"));
    if let Some(default) = schema.get("default") {
        assert_eq!(
            example, default,
            "deploy/sidecar.yaml says otherwise at {path}"
        );
    }
    let (schema, example) = match (schema.get("items"), example.get(0)) {
        (Some(items), Some(first)) => (items, first),
        _ => (schema, example),
    };
    let keys = schema["properties"].as_object().into_iter().flatten();
    for (key, property) in keys.filter(|(key, _)| !INSTEAD_OF_OTHERS.contains(&key.as_str())) {
        check_complete(&format!("{path}/{key}"), property, example.get(key));
    }
}

#[test]
fn the_reference_example_has_every_key_with_its_default() {
    let path = Path::new(DEPLOY).join("sidecar.yaml");
    load(&path).unwrap_or_else(|errors| panic!("{errors}"));
    // What does not work everywhere stands behind a mark.
    let text = std::fs::read_to_string(path)
        .unwrap()
        .replace("\n#: ", "\n");
    let example = serde_saphyr::from_str(&text).unwrap();
    check_complete("", &schema::value(), Some(&example));
}
