//! The archive of `cargo xtask image`, read by another tool than podman: every blob by its digest, in both of its forms.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sidecar_tests::world::programs::packaged;

use crate::image;

/// Runs skopeo on the archive to its successful end. No policy of the machine's about signatures counts.
fn skopeo(arguments: &[&str]) -> Result<String> {
    let output = Command::new(packaged("skopeo", "skopeo")?)
        .arg("--insecure-policy")
        .args(arguments)
        .output()?;
    ensure!(output.status.success(), "skopeo {arguments:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn skopeo_reads_the_archive_in_both_forms() -> Result<()> {
    let archive = image::sidecar()?;
    let directory = tempfile::tempdir()?;
    let mut configs = Vec::new();
    for form in ["oci-archive", "docker-archive"] {
        let source = format!("{form}:{}", archive.display());
        let inspected: Value = serde_json::from_str(&skopeo(&["inspect", &source])?)?;
        ensure!(inspected["Os"] == "linux", "{form}: {inspected}");
        let config: Value = serde_json::from_str(&skopeo(&["inspect", "--config", &source])?)?;
        ensure!(
            config["config"]["User"] == "1337:1337"
                && config["config"]["Entrypoint"] == json!(["/sidecar"]),
            "{form}: {config}"
        );
        // It refuses blobs that are not what their digests say.
        let copy = directory.path().join(form);
        skopeo(&["copy", &source, &format!("dir:{}", copy.display())])?;
        let manifest = manifest(&copy)?;
        let layers = manifest["layers"].as_array().map_or(0, Vec::len);
        ensure!(layers == 2, "{form}: {manifest}");
        configs.push(manifest["config"]["digest"].clone());
    }
    ensure!(configs[0] == configs[1], "two images: {configs:?}");
    Ok(())
}

fn manifest(copy: &Path) -> Result<Value> {
    let text = fs::read_to_string(copy.join("manifest.json")).context("no manifest")?;
    Ok(serde_json::from_str(&text)?)
}
