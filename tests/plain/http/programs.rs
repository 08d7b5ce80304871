//! Clients and servers from Debian's packages, ended with the test.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use sidecar_tests::{random::Random, world::programs::FOREIGN_VARIABLES};

use crate::proxy::world::PATIENCE;

/// Debian's own, which has the modules of Debian's packages.
const PYTHON: &str = "/usr/bin/python3";

/// A server in a process of its own.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    _directory: Option<tempfile::TempDir>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Not SIGKILL: nginx has to end its workers.
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

/// What nginx serves: `/1k` has 1 KiB, `/up/` takes PUT.
pub fn nginx(listen_options: &str) -> Server {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    fs::create_dir_all(root.join("up")).unwrap();
    fs::write(root.join("1k"), "x".repeat(1024)).unwrap();
    let address = free_address();
    let at = directory.path().display();
    let user = if rustix::process::geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    let config = format!(
        "{user} daemon off; worker_processes 1; pid {at}/pid; error_log {at}/error.log;
         events {{ worker_connections 256; }}
         http {{
             access_log off; client_max_body_size 0; client_body_temp_path {at}/body;
             proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;
             server {{
                 listen {address} {listen_options}; root {at}/root;
                 add_header x-protocol $server_protocol; add_header x-host $http_host;
                 location /up/ {{ dav_methods PUT DELETE; }}
             }}
         }}"
    );
    let file = directory.path().join("nginx.conf");
    fs::write(&file, config).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&file).arg("-p").arg(directory.path());
    let child = command.stderr(Stdio::null()).spawn();
    let child = child.expect("nginx is missing: apt-get install nginx (see tests/packages.txt)");
    let end = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        let log = fs::read_to_string(directory.path().join("error.log")).unwrap_or_default();
        assert!(Instant::now() < end, "nginx does not start: {log}");
        thread::sleep(Duration::from_millis(20));
    }
    Server {
        child,
        address,
        _directory: Some(directory),
    }
}

impl Server {
    /// A file that nginx was sent.
    pub fn uploaded(&self, name: &str) -> Vec<u8> {
        let directory = self._directory.as_ref().unwrap();
        fs::read(directory.path().join("root/up").join(name)).unwrap()
    }
}

/// A Python server that prints its port as its first line.
pub fn python_server(script: &str, module: &str) -> Server {
    needs(module);
    let mut child = python(script, &["server"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    let port: u16 = line
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("no port but {line:?}"));
    Server {
        child,
        address: ([127, 0, 0, 1], port).into(),
        _directory: None,
    }
}

/// Runs a Python client to its end; it prints `ok` as its last line, or the test fails with what it says.
pub fn python_client(script: &str, module: &str, arguments: &[&str]) {
    needs(module);
    let output = python(script, &[&["client"], arguments].concat())
        .output()
        .unwrap();
    let said = said(&output);
    assert!(
        output.status.success() && said.trim_end().ends_with("ok"),
        "{said}"
    );
}

fn python(script: &str, arguments: &[&str]) -> Command {
    let mut command = of_debian(PYTHON);
    command.arg("-u").arg(script_path(script)).args(arguments);
    command
}

fn script_path(script: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("plain/http")
        .join(script)
}

fn needs(module: &str) {
    let output = Command::new(PYTHON)
        .args(["-c", &format!("import {module}")])
        .output();
    let there = output.is_ok_and(|output| output.status.success());
    let package = match module {
        "grpc" => "python3-grpcio",
        other => &format!("python3-{other}"),
    };
    assert!(
        there,
        "{package} is missing: apt-get install {package} (see tests/packages.txt)"
    );
}

/// Runs curl to its end, and gives its standard output.
pub fn curl(arguments: &[&str]) -> String {
    let output = of_debian("curl")
        .args([
            // No ~/.curlrc.
            "--disable",
            "--silent",
            "--show-error",
            "--max-time",
            "100",
            "--noproxy",
            "",
        ])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("curl is missing: apt-get install curl (see tests/packages.txt)");
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

pub fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(err),
        String::from_utf8_lossy(out)
    )
}

/// A program in an environment that does not tell it to use somebody else's proxy.
fn of_debian(program: &str) -> Command {
    let mut command = Command::new(program);
    for name in FOREIGN_VARIABLES {
        command.env_remove(name);
    }
    command
}

/// A port that is free, and below those that the kernel gives to clients: other tests run meanwhile.
fn free_address() -> SocketAddr {
    let mut random = Random::new(Random::fresh_seed());
    loop {
        let port = 10_000 + random.below(20_000) as u16;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return listener.local_addr().unwrap();
        }
    }
}
