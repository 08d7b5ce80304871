//! What an injected container starts: `sidecar proxy` with the settings of its pod, and `sidecar ready` beside it.

use std::{fs, net::TcpListener, process::Command, time::Duration};

use sidecar_tests::world::process::Running;

use super::webhook::program;

/// Ports that were free a moment ago.
fn free_ports() -> Vec<u16> {
    let held: Vec<_> = (0..6)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    held.iter()
        .map(|listener| listener.local_addr().unwrap().port())
        .collect()
}

fn ready(address: &str, wait: Option<&str>) -> (Option<i32>, String) {
    let mut command = program();
    command.args(["ready", "--address", address]);
    if let Some(wait) = wait {
        command.args(["--wait", wait]);
    }
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[test]
fn a_proxy_starts_with_the_settings_of_its_pod() {
    let directory = tempfile::tempdir().unwrap();
    let ports = free_ports();
    let [outbound, steered, inbound, admin, metrics, health] = ports[..] else {
        panic!("{ports:?}");
    };
    let settings = format!(
        "workload: {{ name: orders, namespace: shop }}\nlifecycle: {{ exitWhenAlone: false }}\n\
         listeners: {{ outbound: {outbound}, steered: {steered}, inbound: {inbound}, admin: {admin}, metrics: {metrics}, health: \"[::]:{health}\" }}\n"
    );
    let address = format!("127.0.0.1:{health}");
    let (code, said) = ready(&address, None);
    assert!(code == Some(1) && said.contains(&address), "{said}");

    let mut command: Command = program();
    // The file comes with its ConfigMap, which need not exist.
    let path = directory.path().join("sidecar.yaml");
    command
        .args(["proxy", "--optional-config", "--config"])
        .arg(&path)
        .env("SIDECAR_SETTINGS", settings);
    let proxy = Running::start("proxy", directory.path(), &mut command).unwrap();
    let (code, said) = ready(&address, Some("30s"));
    assert!(code == Some(0) && said == "ready\n", "{said} {proxy}");
    let ended = proxy.stop(Duration::from_secs(20)).unwrap();
    assert_eq!(ended.code(), 0, "{ended:?}");

    // A mistake in either is told with its place.
    fs::write(&path, "outbound: { unknwon: x }\n").unwrap();
    for (settings, says) in [
        ("", "sidecar.yaml:1:13"),
        ("failRule: x", "SIDECAR_SETTINGS:1:11"),
    ] {
        let mut command: Command = program();
        command
            .arg("proxy")
            .arg("--config")
            .arg(&path)
            .env("SIDECAR_SETTINGS", settings);
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(2) && said.contains(says),
            "{said}"
        );
        fs::write(&path, "").unwrap();
    }
}
