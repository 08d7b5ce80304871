//! openssl and curl against the inbound port of a sidecar.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use super::authority::{Leaf, Says};

/// A directory with the certificates of a client.
pub struct Papers(pub tempfile::TempDir);

impl Papers {
    pub fn of(leaf: &Leaf) -> Self {
        let directory = tempfile::tempdir().unwrap();
        leaf.write(directory.path(), "client");
        Self(directory)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Options of curl.
    pub fn for_curl(&self) -> Vec<String> {
        let cert = vec!["--cert".to_owned(), self.text("client.crt")];
        [cert, vec!["--key".to_owned(), self.text("client.key")]].concat()
    }

    /// Options of `openssl s_client`.
    pub fn for_openssl(&self) -> Vec<String> {
        let cert = vec!["-cert".to_owned(), self.text("client.crt")];
        [cert, vec!["-key".to_owned(), self.text("client.key")]].concat()
    }
}

/// A workload's papers, signed by nobody yet.
pub fn workload() -> Says {
    Says::id("spiffe://td/ns/default/sa/client")
}

/// `openssl s_client` that sends `request` and reads until the server ends.
pub fn s_client(port: u16, options: &[String], request: &str) -> Output {
    let mut command = Command::new("timeout");
    command
        .args(["20", "openssl", "s_client", "-quiet", "-connect"])
        .arg(format!("127.0.0.1:{port}"))
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("openssl is installed");
    // Fails where the server has refused already.
    let _ = child.stdin.take().unwrap().write_all(request.as_bytes());
    child.wait_with_output().unwrap()
}

/// curl, quiet but for what it gets.
pub fn curl(options: &[String], url: &str) -> Output {
    let mut command = Command::new("curl");
    command
        .args(["-sS", "-k", "--noproxy", "*", "--max-time", "20"])
        .args(options)
        .arg(url);
    command.output().expect("curl is installed")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
