//! Real programs from Debian's packages, unmodified.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result};
use sidecar_tests::world::{
    Finished, Running, Workload, programs::packaged, wait, workload::LIMIT,
};

const READY_LIMIT: Duration = Duration::from_secs(90);

/// Waits until somebody listens on `address` in the workload's namespace. Nothing connects: no program sees a stray
/// connection.
pub fn listens(workload: &Workload<'_>, address: SocketAddr) -> Result<()> {
    let port = format!(":{:04X} ", address.port());
    wait::until_true(&format!("a listener at {address}"), READY_LIMIT, || {
        let tables =
            workload.namespace().proc_net("tcp")? + &workload.namespace().proc_net("tcp6")?;
        // State 0A is LISTEN, its remote address all zero.
        Ok(tables
            .lines()
            .any(|line| line.contains(&port) && line.contains(":0000 0A ")))
    })
}

/// A path as a program's argument.
pub fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not text")
}

pub fn curl(workload: &Workload<'_>, arguments: &[&str]) -> Result<Finished> {
    let curl = packaged("curl", "curl")?;
    let quiet = [
        // No ~/.curlrc.
        "--disable",
        "--silent",
        "--show-error",
        "--noproxy",
        "*",
        "--globoff",
        "--max-time",
        "250",
    ];
    workload
        .start("curl", curl, &[&quiet, arguments].concat())?
        .finish(LIMIT)
}

/// Runs a Python program from tests/peers with Debian's own interpreter and modules.
pub fn python(workload: &Workload<'_>, script: &str, arguments: &[&str]) -> Result<Running> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("peers")
        .join(script);
    let path = text(&path)?;
    let python = packaged("python3", "python3")?;
    workload.start(script, python, &[&["-u", path], arguments].concat())
}

/// nginx with one server block in `directory`, ready.
pub fn nginx(
    workload: &Workload<'_>,
    address: SocketAddr,
    directory: &Path,
    locations: &str,
) -> Result<Running> {
    let root = directory.display();
    let configuration = directory.join("nginx.conf");
    // Requests and their addresses go to standard output, one a line.
    fs::write(
        &configuration,
        format!(
            "daemon off; pid {root}/nginx.pid; error_log stderr; worker_processes 1; user root;\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n\
               log_format names '$remote_addr $server_addr $server_port $status $request_uri';\n\
               access_log /dev/stdout names;\n\
               client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;\n\
               uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;\n\
               server {{ listen {address}; root {root}; client_max_body_size 0; {locations} }}\n\
             }}\n"
        ),
    )?;
    let nginx = packaged("nginx", "nginx")?;
    let running = workload.start("nginx", nginx, &["-c", text(&configuration)?])?;
    listens(workload, address)?;
    Ok(running)
}
