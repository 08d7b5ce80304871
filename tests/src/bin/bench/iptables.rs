//! The rules that istio-init writes for REDIRECT (Istio 1.24, IPv4, no exclusions), in one workload's namespace. They go with it.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use sidecar_tests::world::{Workload, programs::packaged};

/// The user and group whose connections are the proxy's.
pub const PROXY_ID: u32 = 1337;

const RULES: &str = "\
*nat
:ISTIO_INBOUND - [0:0]
:ISTIO_REDIRECT - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A OUTPUT -p tcp -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN
-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
COMMIT
";

/// Loads the rules.
pub fn load(workload: &Workload<'_>) -> Result<()> {
    let mut command = Command::new(packaged("nsenter", "util-linux")?);
    command
        .arg(format!("--net={}", workload.namespace().path().display()))
        .arg(packaged("iptables-restore", "iptables")?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("starting iptables-restore")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(RULES.as_bytes()).context("writing rules")?;
    }
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "iptables-restore refused Istio's rules; a kernel with nat, REDIRECT and owner is needed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
