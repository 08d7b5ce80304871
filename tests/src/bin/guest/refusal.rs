//! Step refusal: on a kernel that is too old, every command that needs the kernel half says so, ends, and leaves nothing.

use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sidecar_tests::world::programs;

/// What an operator has to read.
const WORDS: &str = "needs Linux 5.15";

pub fn in_words() -> Result<Value> {
    let mut said = Vec::new();
    for arguments in [
        &["check"][..],
        &["run", "--", "/bin/true"],
        &["agent", "--socket", "/run/agent.sock"],
    ] {
        let output = Command::new(programs::sidecar()?)
            .args(arguments)
            .output()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        let name = arguments[0];
        ensure!(!output.status.success(), "sidecar {name} succeeds: {text}");
        let line = text.lines().find(|line| line.contains(WORDS));
        let Some(line) = line else {
            anyhow::bail!("sidecar {name} does not say «{WORDS}»: {text}");
        };
        said.push(json!({"command": name, "said": line.trim()}));
    }
    Ok(Value::from(said))
}
