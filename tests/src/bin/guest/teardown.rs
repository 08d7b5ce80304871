//! Step teardown: when all sidecars and the agent have gone, the kernel has nothing of theirs.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sidecar_tests::{
    leaks::{self, Held},
    world::cgroup,
};

/// `before`: what the kernel held before the first of them started.
pub fn nothing_left(before: &Held) -> Result<Value> {
    Held::everywhere()?.without(before).expect_gone()?;
    let pins = leaks::pins(Path::new("/sys/fs/bpf"));
    ensure!(pins.is_empty(), "still pinned: {pins:?}");
    let groups: Vec<_> = fs::read_dir(cgroup::root()?)?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("sidecar"))
        .collect();
    ensure!(groups.is_empty(), "control groups left: {groups:?}");
    Ok(json!({"programs": 0, "maps": 0, "links": 0, "pins": 0}))
}
