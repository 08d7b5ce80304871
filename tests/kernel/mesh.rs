//! Workloads with identities of one embedded authority.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sidecar_tests::world::{Settings, Workload, programs::sidecar};

/// The directory of a new authority for the trust domain `td`.
pub fn authority(workload: &Workload<'_>) -> Result<String> {
    let directory = workload.world().directory().join("ca");
    let path = directory.to_str().context("a path")?;
    let init = ["ca", "init", "--trust-domain", "td", "--directory", path];
    workload.run("ca", sidecar()?, &init)?;
    Ok(path.to_owned())
}

/// Of a sidecar whose workload is `spiffe://td/<id>`. Without redirect, which has its own tests: here bytes shall be on the
/// link.
pub fn identity(authority: &str, id: &str) -> Settings {
    Settings::default()
        .set("identity.ca.directory", authority)
        .set("identity.ca.id", format!("spiffe://td/{id}"))
        .without_redirect()
}

/// `workload` as others call it: by mutual TLS, with `spiffe://td/<id>`.
pub fn service(workload: &Workload<'_>, id: &str, ports: &[u16]) -> Value {
    let address = workload.v4(0).ip().to_string();
    let ports: Vec<Value> = ports.iter().map(|port| json!({ "port": port })).collect();
    json!({
        "name": workload.name(),
        "tls": { "mode": "mesh", "subjectAltNames": [format!("spiffe://td/{id}")] },
        "addresses": [address], "ports": ports, "endpoints": [{ "address": address }],
    })
}
