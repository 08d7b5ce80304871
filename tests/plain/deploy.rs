//! deploy/: the manifests are valid, say what they are meant to say, and name a binary that understands them; so do the units.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sidecar_tests::{
    manifests, pod_security,
    world::programs::{packaged, sidecar},
};

const RENDERED: [&str; 5] = [
    "base",
    "overlays/dev",
    "overlays/production",
    "overlays/taint",
    "examples/shop",
];

#[test]
fn every_manifest_is_valid() {
    let directory = tempfile::tempdir().unwrap();
    for name in RENDERED {
        let text = manifests::render_text(name).unwrap();
        manifests::validate(&text, &directory.path().join("rendered.yaml"))
            .unwrap_or_else(|error| panic!("{name}: {error:#}"));
    }
}

fn pod_spec(object: &Value) -> Option<&Value> {
    object.pointer("/spec/template/spec")
}

#[test]
fn all_but_the_agent_conform_to_restricted() {
    for name in RENDERED {
        for object in manifests::render(name).unwrap() {
            let Some(spec) = pod_spec(&object) else {
                continue;
            };
            let found = pod_security::violations(spec);
            let is_agent = object["kind"] == "DaemonSet";
            assert_eq!(is_agent, !found.is_empty(), "{name}: {found:?}");
        }
    }
}

/// With the sidecars that a cluster puts in.
#[test]
fn the_injected_example_is_valid_and_conforms() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("shop.yaml");
    fs::write(&file, manifests::render_text("examples/shop")?)?;
    let output = Command::new(sidecar()?)
        .args(["inject", "--config-map=sidecar", "--filename"])
        .arg(&file)
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout)?;
    manifests::validate(&text, &file)?;
    let mut injected = 0;
    for object in manifests::documents(&text)? {
        let Some(spec) = pod_spec(&object) else {
            continue;
        };
        ensure!(pod_security::violations(spec).is_empty(), "{object}");
        let containers = spec["initContainers"].as_array();
        injected += usize::from(containers.is_some_and(|all| {
            all.iter().any(|container| {
                container["name"] == "sidecar" && container["restartPolicy"] == "Always"
            })
        }));
    }
    ensure!(injected == 2, "{injected} pods were injected: {text}");
    Ok(())
}

/// What the containers are started with, and the image, are those of this version.
#[test]
fn the_manifests_are_for_this_binary() {
    let image = concat!("localhost/sidecar:", env!("CARGO_PKG_VERSION"));
    for name in [
        "base",
        "overlays/dev",
        "overlays/production",
        "overlays/taint",
    ] {
        let mut seen = 0;
        for object in manifests::render(name).unwrap() {
            let containers = pod_spec(&object).and_then(|spec| spec["containers"].as_array());
            for container in containers.into_iter().flatten() {
                seen += 1;
                if name != "overlays/production" {
                    assert_eq!(container["image"], image, "{name}");
                }
                let arguments = container["args"].as_array().into_iter().flatten();
                let arguments = arguments.filter_map(Value::as_str);
                // Help is given only for what is understood up to there.
                let output = Command::new(sidecar().unwrap())
                    .args(arguments)
                    .arg("--help")
                    .output()
                    .unwrap();
                assert!(output.status.success(), "{name}: {output:?}");
                let environment = container["env"].as_array().into_iter().flatten();
                for variable in environment.filter(|entry| entry["name"] == "SIDECAR_IMAGE") {
                    assert_eq!(variable["value"], container["image"], "{name}");
                }
            }
        }
        assert_eq!(seen, 2, "{name}");
    }
}

/// Nothing that is there for the injector to work depends on the injector.
#[test]
fn no_webhook_is_asked_about_the_system() {
    for object in manifests::render("base").unwrap() {
        let webhooks = object["webhooks"].as_array();
        for webhook in webhooks.into_iter().flatten() {
            let rules = webhook["namespaceSelector"]["matchExpressions"].to_string();
            for namespace in ["kube-system", "sidecar-system"] {
                assert!(rules.contains(namespace), "{webhook}");
            }
            assert_eq!(webhook["failurePolicy"], "Fail");
            assert_eq!(webhook["sideEffects"], "None");
        }
    }
}

/// The component for clusters that do not know all that the base says.
#[test]
fn older_clusters_take_the_manifests_with_the_component() -> Result<()> {
    let directory = tempfile::tempdir()?;
    // kustomize takes relative paths only.
    let place = directory.path().canonicalize()?;
    let up = "../".repeat(place.components().count() - 1);
    let kubernetes = manifests::deploy().canonicalize()?.join("kubernetes");
    let kubernetes = format!("{up}{}", kubernetes.strip_prefix("/")?.display());
    for overlay in ["dev", "production"] {
        let kustomization = serde_json::json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "resources": [format!("{kubernetes}/overlays/{overlay}")],
            "components": [format!("{kubernetes}/components/before-1.30")],
        });
        fs::write(place.join("kustomization.yaml"), kustomization.to_string())?;
        let text = manifests::render_text_of(&place)?;
        for version in ["1.28.0", "1.29.0"] {
            manifests::validate_for(version, &text, &place.join("rendered"))?;
        }
        ensure!(text.contains("container.apparmor"), "{text}");
    }
    Ok(())
}

/// The highest exposure, as `systemd-analyze security` counts it from 0 to 10, that a unit may have.
const EXPOSURE: f64 = 3.5;

#[test]
fn systemd_takes_the_units() -> Result<()> {
    let analyze = packaged("systemd-analyze", "systemd")?;
    let directory = tempfile::tempdir()?;
    for (unit, instance) in [
        ("sidecar-agent.service", "sidecar-agent.service"),
        ("sidecar@.service", "sidecar@shop.service"),
    ] {
        let text = fs::read_to_string(manifests::deploy().join("systemd").join(unit))?;
        let path = directory.path().join(instance);
        // It has to be a program of this machine.
        let binary = sidecar()?;
        let binary = binary.to_str().context("a path")?;
        fs::write(&path, text.replace("/usr/local/bin/sidecar", binary))?;
        let verified = Command::new(&analyze)
            .args(["verify", "--man=no"])
            .arg(&path)
            .output()?;
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        ensure!(
            verified.status.success() && !said.contains(unit),
            "{unit}: {said}"
        );
        let rated = Command::new(&analyze)
            .args(["security", "--offline=true", "--no-pager"])
            .arg(&path)
            .output()?;
        let table = String::from_utf8_lossy(&rated.stdout).into_owned();
        let overall = table.lines().find(|line| line.contains("Overall exposure"));
        let overall = overall.with_context(|| format!("{unit}: no rating: {rated:?}"))?;
        println!("{overall}");
        let score = overall
            .split_whitespace()
            .filter_map(|word| word.parse::<f64>().ok())
            .next_back();
        let score = score.with_context(|| format!("no number: {overall}"))?;
        ensure!(score <= EXPOSURE, "{unit}: {score}\n{table}");
    }
    Ok(())
}
