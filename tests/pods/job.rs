//! A Job's pod: its init container goes past the sidecar, and the sidecar ends when the job has.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use sidecar_tests::world::{World, wait};

use crate::{
    SOON, image,
    mesh::{Mesh, sidecar_of},
};

#[test]
fn a_job_ends_and_its_sidecar_with_it() {
    World::play(|world| {
        let mesh = Mesh::new(world)?;
        let restricted = json!({
            "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] }, "readOnlyRootFilesystem": true,
            "runAsNonRoot": true, "runAsUser": 101, "seccompProfile": { "type": "RuntimeDefault" },
        });
        // Each asks the sidecar's own health port: there is none yet for the first, and one for the second.
        let health = "http://127.0.0.1:15021/healthz/ready";
        let first = format!("! wget -q -O - {health}");
        let work = format!("until wget -q -O - {health}; do sleep 0.1; done; sleep 3; echo worked");
        let container = |name: &str, script: &str| json!({ "name": name, "image": image::CURL, "command": ["sh", "-c", script], "securityContext": restricted });
        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "report" },
            "spec": { "template": {
                "metadata": { "annotations": {
                    "sidecar.internal/identity": "secret/report-identity", "sidecar.internal/inject": "true",
                } },
                "spec": {
                    "restartPolicy": "Never",
                    "initContainers": [container("first", &first)],
                    "containers": [container("work", &work)],
                },
            } },
        });
        let shop = sidecar_tests::manifests::render("examples/shop")?;
        let config = sidecar_tests::manifests::find(&shop, "ConfigMap", "sidecar")?;
        mesh.play("report", &[config.clone(), job])?;
        for container in ["report-work", &sidecar_of("report")] {
            let ended = ends(&mesh, container)?;
            ensure!(
                ended == "exited 0",
                "{container}: {ended}\n{}",
                mesh.node.last_words(container)
            );
        }
        ensure!(mesh.node.logs("report-work")?.contains("worked"), "no work");
        wait::until_true("the agent to detach", SOON, || Ok(mesh.enrolled()? == 0))
    });
}

/// Every ask starts a podman.
fn ends(mesh: &Mesh<'_>, container: &str) -> Result<String> {
    wait::until(&format!("the end of {container}"), SOON, || {
        std::thread::sleep(Duration::from_millis(300));
        let state = state(mesh, container)?;
        Ok(state.starts_with("exited").then_some(state))
    })
    .with_context(|| mesh.node.last_words(container))
}

fn state(mesh: &Mesh<'_>, container: &str) -> Result<String> {
    mesh.node
        .inspect(container, "{{.State.Status}} {{.State.ExitCode}}")
}
