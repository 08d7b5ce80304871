//! The workload's certificate and the roots that it trusts, in the shape of Envoy's `/certs`. Never a key.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::line::rfc3339;
use crate::{identity::certificate::Facts, tls::mesh::MeshHandle};

pub fn certs(handle: Option<&MeshHandle>) -> Value {
    let Some(mesh) = handle.and_then(MeshHandle::load) else {
        return json!({ "certificates": [] });
    };
    let (svid, bundles) = (&mesh.material.svid, &mesh.material.bundles);
    let chain: Vec<Value> = svid
        .key
        .cert
        .iter()
        .filter_map(|each| certificate(&Facts::of(each).ok()?))
        .collect();
    let entries = bundles.iter().map(|(domain, bundle)| {
        let roots = bundle.certificates.iter();
        let roots: Vec<Value> = roots
            .filter_map(|each| certificate(&Facts::of(each).ok()?))
            .collect();
        let own = domain == svid.id.trust_domain();
        json!({
            "trust_domain": domain,
            "ca_cert": roots,
            "cert_chain": if own { chain.clone() } else { Vec::new() },
        })
    });
    json!({ "certificates": entries.collect::<Value>() })
}

fn certificate(facts: &Facts) -> Option<Value> {
    let names = facts.uris.iter().map(|uri| json!({ "uri": uri }));
    let dns = facts.dns.iter().map(|dns| json!({ "dns": dns }));
    Some(json!({
        "serial_number": facts.serial,
        "subject_alt_names": names.chain(dns).collect::<Value>(),
        "valid_from": rfc3339(facts.not_before),
        "expiration_time": rfc3339(facts.not_after),
        "days_until_expiration": (facts.left(SystemTime::now()).as_secs() / 86_400).to_string(),
    }))
}
