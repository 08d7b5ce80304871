//! The webhook under test, and the API servers that ask it.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use sidecar_tests::world::{
    process::Running,
    programs::{FOREIGN_VARIABLES, sidecar},
    wait,
};

use crate::tls::authority::Authority;

/// As API servers call it.
pub const NAME: &str = "sidecar-inject.sidecar-system.svc";

const LIMIT: Duration = Duration::from_secs(30);

/// `sidecar`, without what the environment says.
pub fn program() -> Command {
    let mut command = Command::new(sidecar().unwrap());
    for name in FOREIGN_VARIABLES {
        command.env_remove(name);
    }
    command
}

pub fn here(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/plain/inject")).join(path)
}

/// A webhook under way.
pub struct Webhook {
    pub running: Running,
    pub port: u16,
}

impl Webhook {
    /// `command` with all its arguments, and `--listen 127.0.0.1:0` among them.
    pub fn start(name: &str, logs: &Path, command: &mut Command) -> Self {
        let running = Running::start(name, logs, command).unwrap();
        let port = wait::until("the webhook to listen", LIMIT, || {
            let said = running.stderr()?;
            let port = said.split("address=127.0.0.1:").nth(1);
            let port = port.and_then(|rest| rest.split_whitespace().next());
            Ok(port.map(str::to_owned))
        });
        let port = port.unwrap_or_else(|error| panic!("{error}\n{running}"));
        let port = port.parse().unwrap();
        Self { running, port }
    }

    /// Status and body of a request, if the certificate is believed.
    pub fn ask(&self, roots: &str, request: &[u8]) -> Result<(u16, String)> {
        ask(self.port, roots, request)
    }

    pub fn get(&self, roots: &str, path: &str) -> Result<(u16, String)> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n");
        self.ask(roots, request.as_bytes())
    }

    pub fn post(&self, roots: &str, path: &str, body: &[u8]) -> Result<(u16, String)> {
        let mut request = format!(
            "POST {path}?timeout=10s HTTP/1.1\r\nHost: {NAME}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend(body);
        self.ask(roots, &request)
    }
}

fn ask(port: u16, roots: &str, request: &[u8]) -> Result<(u16, String)> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root?)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth();
    let client = ClientConnection::new(Arc::new(config), ServerName::try_from(NAME)?)?;
    let tcp = TcpStream::connect(("127.0.0.1", port))?;
    tcp.set_read_timeout(Some(LIMIT))?;
    let mut stream = StreamOwned::new(client, tcp);
    // The end of a request that is refused may meet a closed socket.
    let written = stream.write_all(request);
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    ensure!(!answer.is_empty(), "no answer: {written:?} {read:?}");
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}

/// `tls.crt`, `tls.key` for a name of DNS or this machine, signed by `authority`.
pub fn certify(authority: &Authority, directory: &Path, file: &str, name: SanType) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![name];
    let certificate = authority.sign_params(params, &key);
    let at = |end: &str| directory.join(format!("{file}.{end}"));
    // Certificate last, as a reader wants both.
    fs::write(at("key"), key.serialize_pem()).unwrap();
    fs::write(at("crt"), certificate).unwrap();
}
