//! A configuration that changes who the workload is takes effect without a restart, or is refused as a whole.

use std::{fs, path::Path, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, ClientConnection, Error, RootCertStore, ServerConfig, ServerConnection,
    crypto::aws_lc_rs, version,
};
use sidecar_userspace::{
    config::{self, SnapshotHandle},
    identity::{ca::Ca, source::keeper::Keeper},
    lifecycle::readiness::Readiness,
    telemetry::metrics::Metrics,
};

use super::{
    authority::{Authority, Says},
    pair::CLIENT,
};
use crate::proxy::world::wait_until;

const HOUR: Duration = Duration::from_secs(3600);

struct Sidecar {
    config: Arc<SnapshotHandle>,
    keeper: Arc<Keeper>,
}

impl Sidecar {
    fn start(path: &Path, text: &str) -> Self {
        fs::write(path, text).unwrap();
        let config = SnapshotHandle::new(config::load(path).unwrap(), Some(path.to_owned()));
        let metrics = Arc::new(Metrics::new().unwrap());
        let keeper = Keeper::start(&config.load(), &metrics, &Readiness::default()).unwrap();
        config.follow(keeper.clone());
        Self { config, keeper }
    }

    fn reload(&self, text: &str) -> Result<(), String> {
        fs::write(self.config.path().unwrap(), text).unwrap();
        let reloaded = self.config.reload().map(drop);
        reloaded.map_err(|errors| errors.to_string())
    }

    /// The id in force.
    fn id(&self) -> Option<String> {
        let mesh = self.keeper.handle().load()?;
        Some(mesh.material.svid.id.to_string())
    }
}

#[test]
fn another_identity_is_in_force_before_its_configuration_or_neither_is() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let shown = |name: &str| at(name).display().to_string();
    Ca::init(&at("ca"), &"td".parse().unwrap(), HOUR).unwrap();
    let ca = |rest: &str| {
        format!(
            "identity: {{ ca: {{ directory: {} {rest} }} }}\n",
            shown("ca")
        )
    };
    let sidecar = Sidecar::start(&at("sidecar.yaml"), "workload: { name: first }\n");
    assert_eq!(sidecar.id(), None);

    // Added, with the workload's name in it, and changed with that.
    sidecar
        .reload(&format!("workload: {{ name: first }}\n{}", ca("")))
        .unwrap();
    assert_eq!(sidecar.id().unwrap(), "spiffe://td/ns/default/sa/first");
    let owner = sidecar.keeper.handle().owner();
    sidecar
        .reload(&format!("workload: {{ name: second }}\n{}", ca("")))
        .unwrap();
    assert_eq!(sidecar.id().unwrap(), "spiffe://td/ns/default/sa/second");
    assert_ne!(sidecar.keeper.handle().owner(), owner);

    // What cannot be had is refused, with what else the file says.
    let generation = sidecar.config.load().generation;
    let nowhere = "failRule: open\nidentity: { ca: { directory: /nowhere } }\n";
    let refused = sidecar.reload(nowhere).unwrap_err();
    assert!(
        refused.contains("identity") && refused.contains("/nowhere"),
        "{refused}"
    );
    assert_eq!(sidecar.id().unwrap(), "spiffe://td/ns/default/sa/second");
    assert_eq!(sidecar.config.load().generation, generation);
    assert!(sidecar.config.status().stale);

    // Another source, whose files are watched from now on and the authority no longer.
    let authority = Authority::new();
    fs::write(at("root.crt"), &authority.root_pem).unwrap();
    let write = || {
        authority
            .sign(&Says::id(CLIENT))
            .write(directory.path(), "a")
    };
    let (certificate, key) = write();
    let files = format!(
        "identity: {{ files: {{ certificate: {}, privateKey: {}, trustBundle: {} }} }}\n",
        certificate.display(),
        key.display(),
        shown("root.crt")
    );
    sidecar.reload(&files).unwrap();
    assert_eq!(sidecar.id().unwrap(), CLIENT);
    let serial = || {
        let mesh = sidecar.keeper.handle().load().unwrap();
        mesh.material.svid.facts.serial.clone()
    };
    let first = serial();
    write();
    wait_until("the files are watched", || serial() != first);

    // An agent that is not there yet: what there was holds.
    let agent = format!(
        "identity: {{ workloadApi: {{ socket: 'unix:{}' }} }}\n",
        shown("agent")
    );
    sidecar.reload(&agent).unwrap();
    assert_eq!(sidecar.id().unwrap(), CLIENT);

    sidecar.reload("workload: { name: second }\n").unwrap();
    assert_eq!(sidecar.id(), None);
    sidecar.reload(&ca(", id: 'spiffe://td/a'")).unwrap();
    assert_eq!(sidecar.id().unwrap(), "spiffe://td/a");
}

/// Whether a server goes on after the ClientHello of a client that speaks nothing newer.
fn takes_tls_12(server: Arc<ServerConfig>) -> bool {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS12])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = "server".try_into().unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    server.read_tls(&mut hello.as_slice()).unwrap();
    match server.process_new_packets() {
        Ok(_) => true,
        Err(Error::PeerIncompatible(_)) => false,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn the_lowest_version_of_tls_follows_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca");
    Ca::init(&ca, &"td".parse().unwrap(), HOUR).unwrap();
    let with = |more: &str| {
        format!(
            "identity: {{ ca: {{ directory: {} }} {more} }}\n",
            ca.display()
        )
    };
    let sidecar = Sidecar::start(&directory.path().join("sidecar.yaml"), &with(""));
    let old = |sidecar: &Sidecar| {
        let mesh = sidecar.keeper.handle().load().unwrap();
        takes_tls_12(mesh.server.clone())
    };
    assert!(!old(&sidecar));
    sidecar.reload(&with(", minTlsVersion: '1.2'")).unwrap();
    assert!(old(&sidecar));
    sidecar.reload(&with("")).unwrap();
    assert!(!old(&sidecar));
}
