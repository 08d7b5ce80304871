//! The SPIFFE Workload API: an agent of its own process, on a Unix socket.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use sidecar_userspace::{
    identity::source::Source,
    lifecycle::readiness::Readiness,
    model::{Identity, IdentitySource, Workload},
    telemetry::metrics::Metrics,
    tls::{MinVersion, mesh::MeshHandle},
};

use super::{
    authority::{Authority, Says},
    pair::CLIENT,
};
use crate::proxy::world::wait_until;

struct Agent(Child);

impl Agent {
    fn start(directory: &Path) -> Self {
        // One that was killed leaves its socket behind.
        let _ = fs::remove_file(directory.join("socket"));
        let child = Command::new("/usr/bin/python3")
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/plain/tls/workload_api.py"
            ))
            .arg(directory.join("socket"))
            .arg(directory)
            .stdout(Stdio::null())
            .spawn();
        Self(child.expect("python3 is installed"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the agent gives out from now on.
fn give(directory: &Path, authority: &Authority, federated: &Authority) {
    let leaf = authority.sign(&Says::id(CLIENT));
    let write = |name: &str, bytes: &[u8]| fs::write(directory.join(name), bytes).unwrap();
    write("id", CLIENT.as_bytes());
    write("svid.der", &leaf.certificate);
    write("key.der", leaf.key().secret_der());
    write("bundle.der", &authority.root);
    write("federated.name", b"partner.example");
    write("federated.der", &federated.root);
    let aside = directory.join("aside");
    fs::write(&aside, format!("{:?}", leaf.certificate)).unwrap();
    fs::rename(aside, directory.join("generation")).unwrap();
}

#[test]
fn identities_come_and_are_renewed_and_outlive_the_agent() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let (authority, partner) = (Authority::new(), Authority::new());
    give(at, &authority, &partner);
    let identity = Identity {
        source: IdentitySource::WorkloadApi {
            socket: format!("unix:{}", at.join("socket").display()),
        },
        federation: vec![],
        min_version: MinVersion::Tls13,
    };
    let handle = MeshHandle::new();
    let metrics = Arc::new(Metrics::new().unwrap());
    let readiness = Readiness::default();
    let ready = readiness.token("identity");
    let source = Source::start(&identity, &Workload::default(), &handle, &metrics, ready).unwrap();
    // There is no agent yet: nothing is served, and nothing fails.
    thread::sleep(Duration::from_millis(100));
    assert!(handle.load().is_none() && !readiness.is_ready());
    let agent = Agent::start(at);
    wait_until("the first identity is there", || readiness.is_ready());
    let material = || handle.load().unwrap().material.clone();
    assert_eq!(material().svid.id.as_str(), CLIENT);
    let domains: Vec<_> = material()
        .bundles
        .iter()
        .map(|(name, _)| name.to_owned())
        .collect();
    assert_eq!(domains, ["partner.example", "td"]);
    let serial = || material().svid.facts.serial;
    let first = serial();
    give(at, &authority, &partner);
    wait_until("the identity is renewed", || serial() != first);
    let second = serial();
    drop(agent);
    thread::sleep(Duration::from_millis(200));
    assert_eq!(serial(), second);
    give(at, &authority, &partner);
    let _agent = Agent::start(at);
    wait_until("another agent is found", || serial() != second);
    drop(source);
}
