//! Where things are: the repository, its target directory, and what xtask keeps in there.

use std::path::{Path, PathBuf};

/// The repository's root. xtask is always built in place, so the place it was compiled at is the place it serves.
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// cargo's target directory.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), |given| root().join(given))
}

/// Tools that are built for this repository alone (bpf-linker, and cargo-nextest where the machine has none).
pub fn tools() -> PathBuf {
    target().join("tools")
}

/// The BPF object that the `sidecar` binary embeds.
pub fn bpf_object() -> PathBuf {
    target().join("bpf").join("sidecar.o")
}

/// The `sidecar` binary as `profile` builds it.
pub fn sidecar(profile: &str) -> PathBuf {
    let directory = if profile == "dev" { "debug" } else { profile };
    target().join(directory).join("sidecar")
}

/// Full output of the steps whose output is not shown, one file a step.
pub fn logs() -> PathBuf {
    target().join("xtask-logs")
}
