//! testssl.sh, which tries what is known of weak TLS, against a port that takes nothing but mutual TLS. Debian's version has
//! no option for a client's certificate: the openssl that it is given shows one.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use serde::Deserialize;
use sidecar_tests::world::programs::packaged;
use sidecar_userspace::model::Mtls;

use super::{
    authority::Authority,
    pair::SERVER,
    programs::{Papers, workload},
};
use crate::proxy::world::{World, echo, snapshot};

/// What it may complain of, and why that is as it should be.
const EXPLAINED: [(&str, &str); 8] = [
    (
        "engine_problem",
        "said of Debian's openssl, which has no GOST",
    ),
    (
        "service",
        "it shows no certificate, and so is told nothing by HTTP, which is the application's affair",
    ),
    (
        "cert_trust",
        "an SVID has no host name: sidecars compare the SPIFFE id",
    ),
    (
        "cert_chain_of_trust",
        "the root is the mesh's own, none of the public ones",
    ),
    (
        "cert_expirationStatus",
        "an hour's certificate, renewed after two thirds of it",
    ),
    ("cert_notAfter", "likewise"),
    (
        "sessionresumption_ticket",
        "a client that ends at once may miss the ticket, which is no weakness; our own tests take sessions up",
    ),
    (
        "cert_revocation",
        "certificates of an hour expire instead of being revoked",
    ),
];

/// All other grades, from LOW to CRITICAL, and what it could not find out, are weaknesses here.
const HARMLESS: [&str; 2] = ["OK", "INFO"];

/// Protocols, ciphers, forward secrecy, the server's preferences and certificate, and all known vulnerabilities; not
/// which browsers could connect, which takes as long as the rest.
const CHECKS: [&str; 6] = ["-p", "-s", "-f", "-P", "-S", "-U"];

#[derive(Debug, Deserialize)]
struct Finding {
    id: String,
    severity: String,
    finding: String,
}

/// An openssl whose clients have a certificate.
fn openssl(papers: &Papers) -> std::path::PathBuf {
    let path = papers.path("openssl");
    let options = papers.for_openssl().join(" ");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = s_client ] && shift && exec /usr/bin/openssl s_client {options} \"$@\"\nexec /usr/bin/openssl \"$@\"\n"
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Everything that it finds.
fn testssl(port: u16, openssl: &Path, directory: &Path) -> Vec<Finding> {
    let report = directory.join("report.json");
    let program = packaged("testssl", "testssl.sh").unwrap();
    let mut command = Command::new("timeout");
    command
        .arg("200")
        .arg(program)
        .args(["--quiet", "--warnings", "batch", "--color", "0"])
        // Names are not looked up, 127.0.0.1 is all there is.
        .args(["--nodns", "none", "--openssl"])
        .arg(openssl)
        .args(["--connect-timeout", "5", "--openssl-timeout", "5"])
        .args(CHECKS)
        .arg("--jsonfile")
        .arg(&report)
        .arg(format!("127.0.0.1:{port}"));
    let output = command.output().unwrap();
    let text = fs::read_to_string(&report).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}\n{output:?}"))
}

#[test]
fn testssl_finds_no_weakness_on_a_strict_port() {
    let mut snapshot = snapshot();
    snapshot.inbound.mtls = Mtls::Strict;
    let authority = Authority::new();
    let world = World::secured(snapshot, echo(), authority.mesh(SERVER));
    let papers = Papers::of(&authority.sign(&workload()));
    let directory = tempfile::tempdir().unwrap();
    let port = world.handle.ports().inbound;
    let findings = testssl(port, &openssl(&papers), directory.path());
    let of = |id: &str| {
        let found = findings.iter().find(|finding| finding.id == id);
        found.unwrap_or_else(|| panic!("testssl.sh did not look at {id}: {findings:#?}"))
    };
    // It did reach the server, and did look.
    for id in ["SSLv2", "SSLv3", "TLS1", "TLS1_1", "TLS1_2"] {
        assert!(of(id).finding.starts_with("not offered"), "{:?}", of(id));
    }
    for id in [
        "heartbleed",
        "ROBOT",
        "secure_renego",
        "CRIME_TLS",
        "LOGJAM",
        "LUCKY13",
    ] {
        assert_eq!(of(id).severity, "OK", "{:?}", of(id));
    }
    assert!(
        of("TLS1_3").finding.starts_with("offered"),
        "{:?}",
        of("TLS1_3")
    );
    let weak: Vec<&Finding> = findings
        .iter()
        .filter(|finding| !HARMLESS.contains(&finding.severity.as_str()))
        .filter(|finding| !EXPLAINED.iter().any(|(id, _)| *id == finding.id))
        .collect();
    assert!(weak.is_empty(), "{weak:#?}");
}
