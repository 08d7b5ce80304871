//! nginx behind the server's proxy: files of each size, one worker, no log.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use sidecar_tests::world::{Running, Workload, programs::packaged};

use super::{
    ports::{self, Server},
    row::{Bytes, Wire},
};

/// Starts it in the workload's steered control group.
pub fn start(
    workload: &Workload<'_>,
    cgroup: &Path,
    directory: &Path,
    bodies: &[Bytes],
) -> Result<Running> {
    for body in bodies {
        let path = directory.join(body.to_string());
        if !path.exists() {
            fs::write(&path, vec![b'x'; body.0])?;
        }
    }
    let listens: String = ports::served_by(Server::Nginx)
        .map(|port| {
            let http2 = if port.wire == Wire::H2 { " http2" } else { "" };
            format!("listen {}{http2} backlog=4096; ", workload.v4(port.number))
        })
        .collect();
    let root = directory.display();
    let configuration = directory.join("nginx.conf");
    fs::write(
        &configuration,
        // A small body leaves in one write with its head, as most programs answer.
        format!(
            "daemon off; worker_processes 1; pid {root}/nginx.pid; error_log stderr; user root;\n\
             worker_rlimit_nofile 16384; events {{ worker_connections 8192; }}\n\
             http {{\n\
               access_log off; sendfile off; open_file_cache max=64; open_file_cache_valid 1h; default_type text/plain;\n\
               keepalive_requests 1000000000; keepalive_timeout 1h;\n\
               client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;\n\
               uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;\n\
               server {{ {listens} root {root}; }}\n\
             }}\n"
        ),
    )?;
    let nginx = packaged("nginx", "nginx")?;
    let configuration = configuration.to_str().context("a path")?;
    workload.start_in(cgroup, "nginx", nginx, &["-c", configuration])
}
