//! Counters of TLS, and how long the certificates in use are still valid.

use std::time::UNIX_EPOCH;

use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

use crate::identity::{Material, certificate::Facts};

#[derive(Debug)]
pub struct TlsMetrics {
    /// Inbound connections by how they are secured: `mutual_tls` or `none`.
    pub inbound: IntCounterVec,
    /// Handshakes by direction, result, version and whether a session was taken up again.
    pub handshakes: IntCounterVec,
    /// By kind (`leaf`, `root`) and trust domain; of several roots the one that lasts longest.
    expiry: IntGaugeVec,
    /// Attempts to get a new identity, by result.
    pub renewals: IntCounterVec,
}

impl TlsMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok::<_, prometheus::Error>(vec)
        };
        let expiry = IntGaugeVec::new(
            Opts::new(
                "sidecar_certificate_expiry_timestamp_seconds",
                "When the certificates in use expire, in Unix time.",
            ),
            &["kind", "trust_domain"],
        )?;
        registry.register(Box::new(expiry.clone()))?;
        Ok(Self {
            inbound: counter(
                "sidecar_inbound_security_total",
                "Inbound connections by how they are secured.",
                &["security"],
            )?,
            handshakes: counter(
                "sidecar_tls_handshakes_total",
                "TLS handshakes, each with exactly one result.",
                &["direction", "result", "version", "resumed"],
            )?,
            expiry,
            renewals: counter(
                "sidecar_identity_renewals_total",
                "Attempts to get a new certificate or new roots.",
                &["result"],
            )?,
        })
    }

    /// Publishes when what is in use expires; `None`: nothing is.
    pub fn expiry(&self, material: Option<&Material>) {
        self.expiry.reset();
        let Some(material) = material else {
            return;
        };
        let publish = |kind, domain: &str, facts: &Facts| {
            let since = facts
                .not_after
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
            let gauge = self.expiry.with_label_values(&[kind, domain]);
            gauge.set(gauge.get().max(seconds));
        };
        let svid = &material.svid;
        publish("leaf", svid.id.trust_domain(), &svid.facts);
        for (domain, bundle) in material.bundles.iter() {
            for facts in bundle
                .certificates
                .iter()
                .filter_map(|root| Facts::of(root).ok())
            {
                publish("root", domain, &facts);
            }
        }
    }
}
