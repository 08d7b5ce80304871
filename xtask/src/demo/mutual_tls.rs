//! The demo's second half: both sidecars get an identity and policies while they run, and then it matters who calls.

use super::{
    PORT,
    capture::{Capture, Seen},
    requests::{self, Asked},
    sidecars::Sidecar,
    world::World,
};
use crate::process;
use anyhow::{Context as _, Result, ensure};
use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

const SERVER: &str = "spiffe://demo/ns/shop/sa/server";
const WEB: &str = "spiffe://demo/ns/shop/sa/web";
const GUEST: &str = "spiffe://demo/ns/shop/sa/guest";
/// What a program says that has no sidecar.
const PLAINTEXT: &str = "GET /from-a-program-without-a-sidecar HTTP/1.1\r\n\r\n";

/// Who may what, as Istio says it. That nothing else may needs no policy.
const POLICIES: &str = r#"authorization:
  inbound:
    default: deny
    policies:
      - name: readers
        rules: [{ from: [{ source: { namespaces: [shop] } }] }]
      - name: no-guests
        action: DENY
        rules: [{ from: [{ source: { principals: [demo/ns/shop/sa/guest] } }] }]
      - name: no-writes
        action: DENY
        rules: [{ to: [{ operation: { methods: [POST], paths: [/hello.txt] } }] }]
"#;

/// Two sidecars that run, and the program that made them.
pub struct Act<'a> {
    pub world: &'a World,
    pub sidecar: &'a Path,
    pub client: &'a Sidecar,
    pub server: &'a Sidecar,
}

impl Act<'_> {
    /// Everything.
    ///
    /// # Errors
    /// If a request does not end as it should, or the link carries what it should not.
    pub fn play(&self) -> Result<()> {
        println!("8. Identities and policies, put into both files while the sidecars run");
        self.secure()?;
        println!(
            "      {} takes nothing but mutual TLS, and from its policies:",
            SERVER
        );
        for line in POLICIES.lines().skip(4) {
            println!("      {line}");
        }
        let link = Capture::start(self.world, &self.world.server, PORT)?;

        println!("9. The same requests, now as somebody");
        self.expect("GET", WEB, 200, "")?;
        self.expect("POST", WEB, 403, "policy no-writes rules[0]")?;
        self.be(GUEST, 3)?;
        self.expect("GET", GUEST, 403, "policy no-guests rules[0]")?;
        self.speak_plaintext()?;

        println!("10. What was on the link meanwhile, by tcpdump");
        self.judge(&link.up_to(PLAINTEXT)?)
    }

    fn secure(&self) -> Result<()> {
        self.ca(&["init", "--trust-domain", "demo"])?;
        for (id, out) in [(WEB, "web"), (GUEST, "guest")] {
            self.ca(&["issue", "--id", id, "--out", out])?;
        }
        let text = format!(
            "identity: {{ ca: {{ directory: {}, id: '{SERVER}' }} }}\ninbound: {{ mtls: strict }}\n{POLICIES}",
            self.at("ca")
        );
        self.server.reconfigure(self.world, &text, 2)?;
        self.be(WEB, 2)
    }

    /// The client's workload is `id` from now on.
    fn be(&self, id: &str, generation: u64) -> Result<()> {
        let name = id.rsplit('/').next().unwrap_or_default();
        let own = self.at(name);
        let server = self.world.server.v4;
        let text = format!(
            "identity:\n  files: {{ certificate: {own}/tls.crt, privateKey: {own}/tls.key, trustBundle: {own}/ca.crt }}\n\
             services:\n  - name: server\n    addresses: [{server}]\n    ports: [{{ port: {PORT}, protocol: http }}]\n    \
             endpoints: [{{ address: {server} }}]\n    tls: {{ mode: mesh, subjectAltNames: ['{SERVER}'] }}\n"
        );
        self.client.reconfigure(self.world, &text, generation)?;
        println!("      the client is {id}");
        Ok(())
    }

    /// One request, and of a refusal what the server's sidecar has recorded.
    fn expect(&self, method: &str, id: &str, status: u16, rule: &str) -> Result<()> {
        let asked = Asked {
            method,
            path: "/hello.txt",
            host: SocketAddr::new(self.world.server.v4, PORT),
        };
        let got = requests::status(self.world, &asked)?;
        println!("      {method} /hello.txt  {got}");
        ensure!(
            got == status,
            "{id} got {got} for {method}, expected {status}"
        );
        let line = self
            .server
            .record(&[&format!("\"{method} /hello.txt "), id, rule])?;
        println!("         {line}");
        Ok(())
    }

    /// A program that no sidecar steers; it also shows that tcpdump sees what is not encrypted.
    fn speak_plaintext(&self) -> Result<()> {
        let server = SocketAddr::new(self.world.server.v4, PORT);
        self.world.client.within(move || {
            let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(30))?;
            stream.write_all(PLAINTEXT.as_bytes())?;
            Ok(())
        })?;
        let line = self.server.record(&["tls_plaintext_refused"])?;
        println!("      plaintext, from a program without a sidecar: reset\n         {line}");
        Ok(())
    }

    fn judge(&self, seen: &Seen) -> Result<()> {
        ensure!(seen.tls_13, "no ServerHello has chosen TLS 1.3: {seen:?}");
        ensure!(
            seen.handshakes >= 2 && seen.application_data >= 2,
            "{} handshake records and {} of application data: too few",
            seen.handshakes,
            seen.application_data
        );
        println!(
            "      {} packets: {} segments that begin with a TLS handshake record, the server's choice TLS 1.3, and {} with encrypted data",
            seen.packets, seen.handshakes, seen.application_data
        );
        let served = requests::BODY.trim_end();
        for secret in ["/hello.txt", served, "text/plain"] {
            ensure!(!seen.has(secret), "{secret:?} is on the link in plaintext");
        }
        println!(
            "      neither \"/hello.txt\" nor \"{served}\"; only the plaintext of the program without a sidecar, which was refused"
        );
        Ok(())
    }

    fn ca(&self, arguments: &[&str]) -> Result<()> {
        let directory = self.at("ca");
        let mut command = Command::new(self.sidecar);
        command.current_dir(&self.world.directory).arg("ca");
        command.args(arguments).args(["--directory", &directory]);
        process::clean(&mut command);
        process::output(&mut command).context("the embedded authority")?;
        println!("      sidecar ca {} --directory ca", arguments.join(" "));
        Ok(())
    }

    /// A path in the demo's directory, as the configuration wants it.
    fn at(&self, name: &str) -> String {
        self.world.directory.join(name).display().to_string()
    }
}
