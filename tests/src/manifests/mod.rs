//! The manifests of deploy/kubernetes: rendered as `kubectl apply -k` renders them, checked as an API server checks them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::world::programs;

/// deploy/ of this repository.
pub fn deploy() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).join("deploy")
}

/// The objects of a directory below deploy/kubernetes with a kustomization.
pub fn render(directory: &str) -> Result<Vec<Value>> {
    documents(&render_text(directory)?)
}

/// The same, as the text that comes out.
pub fn render_text(directory: &str) -> Result<String> {
    render_text_of(&deploy().join("kubernetes").join(directory))
}

/// The text that comes out of any directory with a kustomization.
pub fn render_text_of(directory: &Path) -> Result<String> {
    let mut kubectl = Command::new(programs::in_venv("kubectl")?);
    kubectl.arg("kustomize").arg(directory);
    said(&mut kubectl)
}

/// The objects of a text.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    let found: Vec<Value> = serde_saphyr::from_multiple(text).context("reading YAML")?;
    Ok(found.into_iter().filter(|value| !value.is_null()).collect())
}

/// The objects as a text; JSON is YAML.
pub fn text(objects: &[Value]) -> String {
    objects
        .iter()
        .map(|object| format!("---\n{object:#}\n"))
        .collect()
}

/// Versions of Kubernetes that the manifests are for, the oldest and the newest that is known here.
const VERSIONS: [&str; 2] = ["1.30.0", "1.37.0"];

/// Checks objects as strictly as API servers that refuse unknown fields. `file` is written.
pub fn validate(objects: &str, file: &Path) -> Result<()> {
    VERSIONS
        .iter()
        .try_for_each(|version| validate_for(version, objects, file))
}

/// As [`validate`], for one version of Kubernetes.
pub fn validate_for(version: &str, objects: &str, file: &Path) -> Result<()> {
    fs::write(file, objects)?;
    let mut validate = Command::new(programs::in_venv("kubernetes-validate")?);
    validate
        .args(["--strict", "--kubernetes-version", version])
        .arg(file);
    said(&mut validate).map(drop)
}

/// The object of that kind and name.
pub fn find<'o>(objects: &'o [Value], kind: &str, name: &str) -> Result<&'o Value> {
    objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .with_context(|| format!("no {kind} {name}"))
}

fn said(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{command:?} failed ({}):\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}
