//! Embeds the BPF object that `cargo xtask build` made. Without one the proxy builds all the same, and every
//! command that needs the kernel half says how to get it.

use std::{env, fs, path::PathBuf};

fn main() {
    let workspace = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("..");
    let object = env::var_os("SIDECAR_BPF_OBJECT")
        .map_or_else(|| workspace.join("target/bpf/sidecar.o"), PathBuf::from);
    println!("cargo:rerun-if-env-changed=SIDECAR_BPF_OBJECT");
    println!("cargo:rerun-if-changed={}", object.display());
    let embedded = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("sidecar.o");
    let bytes = fs::read(&object).unwrap_or_else(|_| {
        println!(
            "cargo:warning=no BPF object at {}, so no kernel half; use `cargo xtask build`",
            object.display()
        );
        Vec::new()
    });
    if fs::read(&embedded).ok().as_deref() != Some(&bytes)
        && let Err(error) = fs::write(&embedded, &bytes)
    {
        println!("cargo::error=cannot write {}: {error}", embedded.display());
    }
}
