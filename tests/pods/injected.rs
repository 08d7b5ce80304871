//! Manifests on their way to podman: `sidecar inject` puts sidecars in, and what podman 4.3 does not know is said in its words.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sidecar_tests::{manifests, world::programs};

/// The objects with a sidecar in each pod, as `sidecar inject` makes them for clusters without native sidecars: podman would take a
/// native one for an init container that never ends.
pub fn injected(objects: &[Value], directory: &Path) -> Result<Vec<Value>> {
    let file = directory.join("to-inject.yaml");
    fs::write(&file, manifests::text(objects))?;
    let output = Command::new(programs::sidecar()?)
        .args([
            "inject",
            "--sidecar-kind=container",
            "--agent-volume=hostPath",
        ])
        .args(["--config-map=sidecar", "--namespace=shop", "--filename"])
        .arg(&file)
        .output()?;
    ensure!(
        output.status.success(),
        "sidecar inject: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    manifests::documents(&String::from_utf8_lossy(&output.stdout))
}

/// What podman plays of the objects: pods, also those of what has a template of them, and what they mount. Secrets are directories
/// below `secrets`.
pub fn for_podman(objects: &[Value], secrets: &Path) -> Result<Vec<Value>> {
    let mut played = Vec::new();
    for object in objects {
        match object["kind"].as_str() {
            Some("Pod") => played.push(plain(object.clone(), secrets)?),
            Some("Deployment" | "DaemonSet" | "Job") => {
                played.push(plain(pod_of(object)?, secrets)?);
            }
            Some("ConfigMap") => played.push(object.clone()),
            _ => {}
        }
    }
    Ok(played)
}

/// The pod that the template describes, called as its owner.
fn pod_of(object: &Value) -> Result<Value> {
    let template = object.pointer("/spec/template").context("no template")?;
    let mut pod = template.clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = object["metadata"]["name"].clone();
    Ok(pod)
}

fn plain(mut pod: Value, secrets: &Path) -> Result<Value> {
    // It refuses values of more than 63 bytes, which is the limit of labels.
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        metadata.remove("annotations");
    }
    let spec = pod["spec"].as_object_mut().context("a pod without spec")?;
    for key in ["initContainers", "containers"] {
        let containers = spec.get_mut(key).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let container = container.as_object_mut().context("a container")?;
            // Probes and hooks are the kubelet's; podman asks by programs that images FROM scratch do not have. A port that a
            // container names would be published on the machine.
            for unknown in [
                "startupProbe",
                "readinessProbe",
                "livenessProbe",
                "lifecycle",
                "ports",
            ] {
                container.remove(unknown);
            }
        }
    }
    let volumes = spec.get_mut("volumes").and_then(Value::as_array_mut);
    for volume in volumes.into_iter().flatten() {
        // Version 4.3 crashes on them.
        if let Some(name) = volume.pointer("/secret/secretName").and_then(Value::as_str) {
            let path = secrets.join(name);
            *volume = json!({ "name": volume["name"], "hostPath": { "path": path, "type": "Directory" } });
        }
    }
    Ok(pod)
}
