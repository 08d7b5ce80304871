//! Envoy's configuration: what a sidecar of it does in production, without what a control plane adds. Connections come by
//! REDIRECT, go to their original destination, and are told apart by its port; towards the application they come from
//! 127.0.0.6, which Istio's rules let pass.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::{
    identity::{CLIENT_ID, Identity, SERVER_ID},
    ports::{PORTS, Port},
    row::Wire,
};

/// Where the administration interface listens, which says when Envoy is ready.
pub const ADMIN_PORT: u16 = 15000;

const OUTBOUND_PORT: u16 = 15001;
const INBOUND_PORT: u16 = 15006;
/// As Istio sets them: none.
const NO_LIMIT: u32 = u32::MAX;

/// Of the client's Envoy: mutual TLS to some of the server's ports.
pub fn client(identity: &Identity) -> Value {
    let chains = PORTS.iter().map(|port| {
        let cluster = cluster_name(port.mtls, is_http2(port));
        chain(port, &cluster, None)
    });
    let tls = |http2| {
        let alpn = if http2 { "h2" } else { "istio" };
        json!({
            "name": "tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": common_tls(identity, SERVER_ID, &[alpn]),
            },
        })
    };
    let clusters = [(false, false), (false, true), (true, false), (true, true)];
    let clusters = clusters.map(|(mtls, http2)| {
        let mut cluster = cluster(&cluster_name(mtls, http2), http2);
        if mtls {
            cluster["transport_socket"] = tls(http2);
        }
        cluster
    });
    bootstrap("outbound", OUTBOUND_PORT, chains.collect(), clusters.into())
}

/// Of the server's: mutual TLS on those ports, plaintext on the others.
pub fn server(identity: &Identity) -> Value {
    let tls = json!({
        "name": "tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "common_tls_context": common_tls(identity, CLIENT_ID, &["h2", "http/1.1", "istio"]),
        },
    });
    let chains = PORTS.iter().map(|port| {
        let cluster = cluster_name(false, is_http2(port));
        chain(port, &cluster, port.mtls.then(|| tls.clone()))
    });
    let clusters = [false, true].map(|http2| {
        let mut cluster = cluster(&cluster_name(false, http2), http2);
        cluster["upstream_bind_config"] =
            json!({"source_address": {"address": "127.0.0.6", "port_value": 0}});
        cluster
    });
    bootstrap("inbound", INBOUND_PORT, chains.collect(), clusters.into())
}

fn bootstrap(name: &str, port: u16, chains: Vec<Value>, clusters: Vec<Value>) -> Value {
    let direction = name.to_uppercase();
    json!({
        "admin": {"address": address([127, 0, 0, 1].into(), ADMIN_PORT)},
        "static_resources": {
            "listeners": [{
                "name": name,
                "traffic_direction": direction,
                "address": address([0, 0, 0, 0].into(), port),
                "listener_filters": [{
                    "name": "original_dst",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
                    },
                }],
                "filter_chains": chains,
            }],
            "clusters": clusters,
        },
    })
}

fn address(ip: IpAddr, port: u16) -> Value {
    json!({"socket_address": {"address": ip, "port_value": port}})
}

fn cluster_name(mtls: bool, http2: bool) -> String {
    format!(
        "original-{}-{}",
        if mtls { "mtls" } else { "plain" },
        if http2 { "http2" } else { "http1" }
    )
}

fn is_http2(port: &Port) -> bool {
    matches!(port.wire, Wire::H2 | Wire::Grpc)
}

fn cluster(name: &str, http2: bool) -> Value {
    let mut cluster = json!({
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{
            "max_connections": NO_LIMIT, "max_pending_requests": NO_LIMIT, "max_requests": NO_LIMIT, "max_retries": NO_LIMIT,
        }]},
    });
    if http2 {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        });
    }
    cluster
}

/// What is done with connections to `port`.
fn chain(port: &Port, cluster: &str, tls: Option<Value>) -> Value {
    let prefix = format!("port-{}", port.number);
    let filter = match port.wire {
        Wire::Tcp => json!({
            "name": "tcp",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": prefix,
                "cluster": cluster,
            },
        }),
        Wire::Http | Wire::H2 | Wire::Grpc => json!({
            "name": "http",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": prefix,
                "http_filters": [{
                    "name": "router",
                    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
                }],
                "route_config": {
                    "virtual_hosts": [{
                        "name": "all",
                        "domains": ["*"],
                        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}],
                    }],
                },
            },
        }),
    };
    let mut chain = json!({
        "filter_chain_match": {"destination_port": port.number},
        "filters": [filter],
    });
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    chain
}

/// Our own certificate, and whose we believe: TLS 1.3, as our proxy speaks it.
fn common_tls(identity: &Identity, peer: &str, alpn: &[&str]) -> Value {
    json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": alpn,
        "tls_certificates": [{
            "certificate_chain": {"filename": identity.certificate},
            "private_key": {"filename": identity.private_key},
        }],
        "validation_context": {
            "trusted_ca": {"filename": identity.trust_bundle},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}],
        },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn identity() -> Identity {
        Identity {
            certificate: "/c".into(),
            private_key: "/k".into(),
            trust_bundle: "/r".into(),
        }
    }

    #[test]
    fn every_port_has_a_chain_and_its_cluster_exists() {
        for config in [client(&identity()), server(&identity())] {
            let resources = &config["static_resources"];
            let clusters: Vec<&Value> = resources["clusters"]
                .as_array()
                .unwrap()
                .iter()
                .map(|c| &c["name"])
                .collect();
            let chains = resources["listeners"][0]["filter_chains"]
                .as_array()
                .unwrap();
            assert_eq!(chains.len(), PORTS.len());
            for chain in chains {
                let filter = &chain["filters"][0]["typed_config"];
                let route = &filter["route_config"]["virtual_hosts"][0]["routes"][0]["route"];
                let cluster = if filter["cluster"].is_null() {
                    &route["cluster"]
                } else {
                    &filter["cluster"]
                };
                assert!(clusters.contains(&cluster), "{cluster}");
            }
        }
    }
}
