//! The configuration of the sidecars: one for all modes, but for the switch of redirect.

use std::net::IpAddr;

use serde_json::json;
use sidecar_tests::world::Settings;

use super::{
    identity::{Identities, SERVER_ID},
    mode::Mode,
    ports::PORTS,
    row::Wire,
};

/// Of the client's sidecar: mutual TLS to some of the server's ports.
pub fn client(
    mode: &Mode,
    server: IpAddr,
    identities: &Identities,
    workers: Option<u32>,
) -> Settings {
    let ports = |mtls| {
        let chosen = PORTS.iter().filter(move |port| port.mtls == mtls);
        chosen.map(|port| json!({"port": port.number, "protocol": protocol(port.wire)}))
    };
    let service = json!({
        "name": "behind-mtls",
        "addresses": [server],
        "endpoints": [{"address": server}],
        "ports": ports(true).collect::<Vec<_>>(),
        "tls": {"mode": "mesh", "subjectAltNames": [SERVER_ID]},
    });
    common(mode, workers)
        .set("identity.files", identities.client.files())
        .set("outbound.ports", ports(false).collect::<Vec<_>>())
        .push("services", service)
}

/// Of the server's: each port takes either mutual TLS or plaintext, so that nothing has to be found out.
pub fn server(mode: &Mode, identities: &Identities, workers: Option<u32>) -> Settings {
    let ports = PORTS.iter().map(|port| {
        let mtls = if port.mtls { "strict" } else { "disable" };
        json!({"port": port.number, "protocol": protocol(port.wire), "mtls": mtls})
    });
    common(mode, workers)
        .set("identity.files", identities.server.files())
        .set("inbound.ports", ports.collect::<Vec<_>>())
}

fn common(mode: &Mode, workers: Option<u32>) -> Settings {
    let opted_out = PORTS.iter().filter(|port| port.opt_out);
    let opted_out: Vec<u16> = opted_out.map(|port| port.number).collect();
    let settings = Settings::default()
        // As Istio's default: none of the proxies writes one.
        .set("accessLog.format", "none")
        .set("redirect.exclude.ports", opted_out)
        .set("redirect.enabled", *mode == Mode::Redirect);
    match workers {
        Some(workers) => settings.set("workers", workers),
        None => settings,
    }
}

/// As the configuration calls it.
pub fn protocol(wire: Wire) -> &'static str {
    match wire {
        Wire::Tcp => "tcp",
        Wire::Http => "http",
        Wire::H2 => "http2",
        Wire::Grpc => "grpc",
    }
}
