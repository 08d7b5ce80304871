//! The root file system of a machine: busybox, our binaries, a few programs with their libraries, a few modules.

use super::{Programs, kernel::Kernel};
use crate::{process, step};
use anyhow::{Context as _, Result, bail};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

const INIT: &str = include_str!("init.sh");

/// Of Debian's packages in tests/packages.txt; the tests' world starts them by these paths.
const TOOLS: [&str; 5] = [
    "/usr/sbin/ip",
    "/usr/sbin/bpftool",
    "/usr/bin/nsenter",
    "/usr/bin/setpriv",
    "/usr/bin/unshare",
];

/// Modules in the order in which they need each other; a kernel may have them built in.
const MODULES: [&str; 6] = ["llc", "stp", "bridge", "veth", "inet_diag", "tcp_diag"];

/// Builds it for `kernel` and gives its path. It is not compressed: unpacking would take the emulated CPU longer.
///
/// # Errors
/// If a program or a module is missing.
pub fn build(kernel: &Kernel, programs: &Programs) -> Result<PathBuf> {
    let directory = super::directory().join("machines").join(&kernel.release);
    let root = directory.join("root");
    let _ = fs::remove_dir_all(&root);
    for directory in ["bin", "opt/guest", "modules"] {
        let path = root.join(directory);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
    }
    copy(Path::new("/bin/busybox"), &root.join("bin/busybox"))?;
    symlink("busybox", root.join("bin/sh")).context("linking sh")?;
    // `guest` looks for `traffic` where it stands beside a test of cargo's.
    for (from, to) in [
        (&programs.sidecar, "opt/sidecar"),
        (&programs.traffic, "opt/traffic"),
        (&programs.guest, "opt/guest/guest"),
    ] {
        strip(from, &root.join(to))?;
    }
    for tool in TOOLS {
        copy(Path::new(tool), &root.join(&tool[1..]))?;
    }
    let own = [&programs.sidecar, &programs.traffic, &programs.guest].map(PathBuf::as_path);
    for library in libraries(own.into_iter().chain(TOOLS.map(Path::new)))? {
        copy(
            &library,
            &root.join(library.strip_prefix("/").unwrap_or(&library)),
        )?;
    }
    modules(kernel, &root.join("modules"))?;
    let init = root.join("init");
    fs::write(&init, INIT).context("writing init")?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).context("writing init")?;

    let archive = directory.join("initramfs.cpio");
    let mut pack = Command::new("sh");
    pack.args(["-c", "find . | busybox cpio -o -H newc >\"$0\""])
        .arg(&archive)
        .current_dir(&root);
    let title = format!("packing the initramfs for {}", kernel.release);
    step::run(&title, "Is the disk full?", &mut pack)?;
    fs::remove_dir_all(&root).context("removing what was packed")?;
    Ok(archive)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
    }
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("copying {}: run `cargo xtask setup`", from.display()))
}

/// Debugging information is most of a binary.
fn strip(from: &Path, to: &Path) -> Result<()> {
    process::output(Command::new("strip").arg("-o").arg(to).arg(from)).map(drop)
}

/// The libraries that `programs` are linked with, the dynamic loader included.
fn libraries<'a>(programs: impl Iterator<Item = &'a Path>) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for program in programs {
        let said = process::output(Command::new("ldd").arg(program))?;
        found.extend(linked(&said));
    }
    Ok(found)
}

fn linked(said: &str) -> impl Iterator<Item = PathBuf> {
    let words = said
        .lines()
        .filter_map(|line| line.split_whitespace().find(|w| w.starts_with('/')));
    words.map(PathBuf::from)
}

/// Puts the modules that are not built in into `directory`, unpacked, named in their order.
fn modules(kernel: &Kernel, directory: &Path) -> Result<()> {
    let mut available = Vec::new();
    find(&kernel.modules.join("kernel"), &mut available)?;
    for (number, name) in MODULES.iter().enumerate() {
        let module = available.iter().find(|path| {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            file.strip_prefix(name)
                .is_some_and(|end| end.starts_with(".ko"))
        });
        let Some(module) = module else {
            continue;
        };
        let to = directory.join(format!("{number}-{name}.ko"));
        let unpack = match module.extension().and_then(|end| end.to_str()) {
            Some("ko") => {
                copy(module, &to)?;
                continue;
            }
            Some("xz") => "xz",
            Some("zst") => "zstd",
            Some("gz") => "gzip",
            _ => bail!("{} is packed in an unknown way", module.display()),
        };
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$0\" -d -c \"$1\" >\"$2\"", unpack]);
        process::output(command.arg(module).arg(&to))?;
    }
    Ok(())
}

fn find(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory);
    for entry in entries.with_context(|| format!("reading {}", directory.display()))? {
        let path = entry.context("reading a directory of modules")?.path();
        if path.is_dir() {
            find(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let said = "\tlinux-vdso.so.1 (0x1)\n\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        let found: Vec<_> = linked(said).collect();
        assert_eq!(
            found,
            [
                Path::new("/lib/x86_64-linux-gnu/libm.so.6"),
                Path::new("/lib64/ld-linux-x86-64.so.2")
            ]
        );
    }
}
