//! Identity, and where connections are encrypted: nothing asks for an identity that nobody configured.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{Report, Unique};
use crate::{
    config::{
        error::Mark,
        file::{identity as file, service, traffic},
        scalar::{Marked, Scalar, Setting},
        value::Socket,
    },
    model::{Federated, Identity, IdentitySource, Mtls, Origin, ServiceTls},
    tls::MinVersion,
};

/// An hour: short enough that revocation is not missed, long enough for an outage of what renews it.
const CA_LIFETIME: Duration = Duration::from_secs(3600);

pub(super) fn compile(
    report: &mut Report,
    file: Option<Marked<file::Identity>>,
) -> Option<Identity> {
    let Marked { mark, value: file } = file?;
    let mut federation = Vec::new();
    let mut domains = Unique::default();
    for each in file.federation.unwrap_or_default() {
        let domain_mark = each.trust_domain.mark;
        let domain = report.value(each.trust_domain);
        let bundle = report.value(each.trust_bundle);
        let (Some(trust_domain), Some(trust_bundle)) = (domain, bundle) else {
            continue;
        };
        let taken = || {
            (
                "a trust domain that is not listed yet",
                trust_domain.to_string(),
            )
        };
        if domains.claim(report, trust_domain.clone(), domain_mark, taken) {
            federation.push(Federated {
                trust_domain,
                trust_bundle,
            });
        }
    }
    let mut min_version = MinVersion::Tls13;
    report.set(&mut min_version, file.min_tls_version);
    let source = match (file.files, file.ca, file.workload_api) {
        (Some(files), None, None) => files_source(report, files),
        (None, Some(ca), None) => ca_source(report, ca),
        (None, None, Some(api)) => workload_api(report, mark, api),
        (None, None, None) => {
            report.expected(mark, "one of files, ca, workloadApi", "none");
            None
        }
        _ => {
            report.expected(mark, "one of files, ca, workloadApi", "several");
            None
        }
    };
    Some(Identity {
        source: source?,
        federation,
        min_version,
    })
}

fn files_source(report: &mut Report, files: file::IdentityFiles) -> Option<IdentitySource> {
    let certificate = report.value(files.certificate);
    let private_key = report.value(files.private_key);
    let trust_bundle = report.value(files.trust_bundle);
    let mut owner_only = true;
    report.set(&mut owner_only, files.owner_only);
    Some(IdentitySource::Files {
        certificate: certificate?,
        private_key: private_key?,
        trust_bundle: trust_bundle?,
        owner_only,
    })
}

fn ca_source(report: &mut Report, ca: file::IdentityCa) -> Option<IdentitySource> {
    let directory = report.value(ca.directory);
    let id = ca.id.and_then(|id| report.value(id));
    let mut lifetime = CA_LIFETIME;
    report.set(&mut lifetime, ca.lifetime);
    Some(IdentitySource::Ca {
        directory: directory?,
        id,
        lifetime,
    })
}

fn workload_api(
    report: &mut Report,
    mark: Mark,
    file: file::IdentityWorkloadApi,
) -> Option<IdentitySource> {
    let socket = match file.socket {
        Some(socket) => report.value(socket)?,
        None => match std::env::var("SPIFFE_ENDPOINT_SOCKET") {
            Ok(socket) => Socket::parse(&socket)
                .inspect_err(|expected| {
                    let expected = format!("{expected} in SPIFFE_ENDPOINT_SOCKET");
                    report.expected(mark, expected, &socket);
                })
                .ok()?,
            Err(_) => {
                let expected = "workloadApi.socket, or SPIFFE_ENDPOINT_SOCKET in the environment";
                report.expected(mark, expected, "neither");
                return None;
            }
        },
    };
    Some(IdentitySource::WorkloadApi { socket })
}

/// What inbound ports say of mutual TLS, beside what holds for the others.
pub(super) fn inbound(
    report: &mut Report,
    general: Option<Setting<Mtls>>,
    ports: &mut Option<Vec<traffic::InboundPort>>,
    has_identity: bool,
) -> (Mtls, BTreeMap<u16, Mtls>) {
    let mut mode = match has_identity {
        true => Mtls::Permissive,
        false => Mtls::Disable,
    };
    let checked = |report: &mut Report, setting: Setting<Mtls>| {
        let mark = setting.mark;
        let mode = report.value(setting)?;
        needs_identity(report, mark, has_identity || mode == Mtls::Disable);
        Some(mode)
    };
    if let Some(general) = general.and_then(|setting| checked(report, setting)) {
        mode = general;
    }
    let mut of_ports = BTreeMap::new();
    for entry in ports.iter_mut().flatten() {
        let own = entry
            .mtls
            .take()
            .and_then(|setting| checked(report, setting));
        if let (Some(own), Ok(port)) = (own, &entry.port.value) {
            of_ports.insert(*port, own);
        }
    }
    (mode, of_ports)
}

pub(super) fn service(
    report: &mut Report,
    file: Option<Marked<service::ServiceTls>>,
    has_identity: bool,
) -> Option<Arc<ServiceTls>> {
    let Marked { mark, value: file } = file?;
    let mode = report.value(file.mode)?;
    let identities = report.values(file.subject_alt_names);
    let mut origin = Origin {
        sni: file.sni.and_then(|sni| report.value(sni)),
        roots: file.ca_certificates.and_then(|roots| report.value(roots)),
        client: None,
    };
    let tunnel = file.tunnel.and_then(|tunnel| report.value(tunnel));
    let certificate = file.client_certificate.and_then(|path| report.value(path));
    let key = file.private_key.and_then(|path| report.value(path));
    let has_client = certificate.is_some() || key.is_some();
    let mesh = matches!(mode, service::TlsMode::Mesh | service::TlsMode::Disable);
    if mode == service::TlsMode::Mesh && (has_client || origin != Origin::default()) {
        let expected =
            "subjectAltNames and tunnel alone, as the mesh has its own certificates and roots";
        report.expected(mark, expected, "settings of simple and mutual");
    }
    if !mesh && !identities.is_empty() {
        report.expected(
            mark,
            "sni, as servers outside the mesh are known by name",
            "subjectAltNames",
        );
    }
    if !mesh && tunnel.is_some() {
        report.expected(
            mark,
            "the mode mesh, as tunnels lead to other sidecars",
            "tunnel",
        );
    }
    match mode {
        service::TlsMode::Simple => {
            if has_client {
                report.expected(mark, "the mode mutual, with a client certificate", "simple");
            }
            Some(Arc::new(ServiceTls::Origin(origin)))
        }
        service::TlsMode::Mutual => {
            origin.client = certificate.zip(key);
            if origin.client.is_none() {
                report.expected(mark, "clientCertificate and privateKey", "not both");
            }
            Some(Arc::new(ServiceTls::Origin(origin)))
        }
        service::TlsMode::Disable => None,
        service::TlsMode::Mesh => {
            needs_identity(report, mark, has_identity);
            if identities.is_empty() {
                let expected = "subjectAltNames, the identities that the endpoints may have";
                report.expected(mark, expected, "none");
            }
            let tunnel = tunnel.unwrap_or(true);
            Some(Arc::new(ServiceTls::Mesh { identities, tunnel }))
        }
    }
}

fn needs_identity(report: &mut Report, mark: Mark, fine: bool) {
    if !fine {
        report.expected(mark, "the section identity, which mutual TLS needs", "none");
    }
}

impl From<traffic::InboundPort> for traffic::PortProtocol {
    fn from(port: traffic::InboundPort) -> Self {
        let traffic::InboundPort { port, protocol, .. } = port;
        Self { port, protocol }
    }
}
