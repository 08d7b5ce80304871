//! Step check: what `sidecar check` says of this kernel.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sidecar_tests::world::programs;

/// All that it found, as it says it with `--json`; nothing of it may have failed.
pub fn check() -> Result<Value> {
    let output = Command::new(programs::sidecar()?)
        .args(["check", "--json"])
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let found: Value = serde_json::from_str(&said)
        .with_context(|| format!("{said}\n{}", String::from_utf8_lossy(&output.stderr)))?;
    ensure!(
        output.status.success(),
        "sidecar check: {}, {found}",
        output.status
    );
    Ok(found)
}

/// How far redirect goes, as far as `sidecar check` knows: the name of the level.
pub fn level(found: &Value) -> Option<String> {
    let rows = found.as_array().into_iter().flatten();
    let said = rows.filter(|row| row["subject"] == "redirect");
    let said = said.filter_map(|row| row["found"].as_str()).next()?;
    let end = said.find([' ', ':']).unwrap_or(said.len());
    Some(said[..end].to_owned())
}
