//! Commands that xtask starts: cargo in a clean environment, and quick questions to other programs.

use crate::paths;
use anyhow::{Context as _, Result, bail};
use std::{
    ffi::{OsStr, OsString},
    io::PipeReader,
    path::Path,
    process::{Child, Command, Stdio},
};

/// The cargo that runs xtask, for the host's half, started at the repository's root.
pub fn host_cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::root());
    clean(&mut command);
    command
}

/// The same, for building the userspace half: told where the BPF object is, if that is not where it looks by itself. (A variable
/// that is set at times and not at others would make cargo build it anew each time.)
pub fn userspace_cargo() -> Command {
    let mut command = host_cargo();
    if paths::target() != paths::root().join("target") {
        command.env("SIDECAR_BPF_OBJECT", paths::bpf_object());
    }
    command
}

/// Takes out of `command`'s environment what `cargo run` put there for xtask alone: a build must not differ by who started it,
/// and an application must not inherit a library path of ours.
pub fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if cargo_gave_it(&name) {
            command.env_remove(name);
        }
    }
    if let Some(library_path) = std::env::var_os("LD_LIBRARY_PATH") {
        match without_cargos(&library_path, &paths::target()) {
            Some(rest) => command.env("LD_LIBRARY_PATH", rest),
            None => command.env_remove("LD_LIBRARY_PATH"),
        };
    }
}

fn cargo_gave_it(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| {
        ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
            || matches!(
                name,
                "CARGO_PRIMARY_PACKAGE" | "CARGO_CRATE_NAME" | "OUT_DIR"
            )
    })
}

/// `cargo run` prepends the target directory's and the toolchain's own libraries.
fn without_cargos(library_path: &OsStr, target: &Path) -> Option<OsString> {
    let rest: Vec<_> = std::env::split_paths(library_path)
        .filter(|entry| {
            !entry.starts_with(target)
                && !entry
                    .components()
                    .any(|part| part.as_os_str() == "toolchains")
        })
        .filter(|entry| !entry.as_os_str().is_empty())
        .collect();
    if rest.is_empty() {
        return None;
    }
    std::env::join_paths(rest).ok()
}

/// Starts `command`, without input. What it says on its standard output and error comes out of the pipe, in order.
///
/// # Errors
/// If it cannot be started.
pub fn followed(command: &mut Command) -> Result<(Child, PipeReader)> {
    let (output, writer) = std::io::pipe().context("making a pipe")?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("making a pipe")?)
        .stderr(writer);
    let child = command
        .spawn()
        .with_context(|| format!("starting {}", shown(command)))?;
    // The command holds the pipe's writing end; while it does, a reader sees no end of file.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Ok((child, output))
}

/// What `command` prints to its standard output, trimmed.
///
/// # Errors
/// If it cannot be started, or fails: then with what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {}", shown(command)))?;
    if !output.status.success() {
        bail!(
            "{} failed ({}): {}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// `command` as one would type it.
pub fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether a program of that name is on PATH.
pub fn on_path(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
    })
}

/// Whether this process may do everything.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn cargos_libraries_leave_the_library_path_and_others_stay() {
        let path = "/w/target/debug/deps:/root/.rustup/toolchains/stable/lib:/opt/lib";
        let rest = without_cargos(OsStr::new(path), Path::new("/w/target"));
        assert_eq!(rest, Some("/opt/lib".into()));
        assert_eq!(
            without_cargos(OsStr::new("/w/target/debug"), Path::new("/w/target")),
            None
        );
    }

    #[test]
    fn what_the_user_set_for_cargo_stays() {
        assert!(cargo_gave_it(OsStr::new("CARGO_PKG_NAME")));
        assert!(!cargo_gave_it(OsStr::new("CARGO_HOME")));
        assert!(!cargo_gave_it(OsStr::new("CARGO_NET_OFFLINE")));
    }
}
