//! What is in the image: the binary, the shared libraries that it names, and the few files that they read.
//!
//! The libraries are the build machine's own, at the paths at which its loader finds them, so that the image runs what the tests
//! have run. glibc has the name resolution by files and DNS built in since 2.34.

use anyhow::{Context as _, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// One file of the image.
pub struct Entry {
    /// In the image, without the leading slash.
    pub path: PathBuf,
    pub mode: u32,
    pub content: Content,
}

pub enum Content {
    Directory,
    File(Vec<u8>),
}

/// The numeric user of the sidecar's container, unless its pod says otherwise.
pub const USER: u32 = 1337;

/// Public roots, for servers outside the mesh.
const ROOTS: [&str; 2] = [
    "/etc/ssl/certs/ca-certificates.crt",
    // Fedora and its kin.
    "/etc/pki/tls/certs/ca-bundle.crt",
];
const ROOTS_IN_IMAGE: &str = "etc/ssl/certs/ca-certificates.crt";

/// What changes seldom: all but the binary.
///
/// # Errors
/// If a library or the public roots are not to be had.
pub fn base(binary: &Path) -> Result<Vec<Entry>> {
    let mut entries = vec![
        text(
            "etc/passwd",
            &format!(
                "root:x:0:0:root:/:/sbin/nologin\nsidecar:x:{USER}:{USER}:sidecar:/:/sbin/nologin\n"
            ),
        ),
        text("etc/group", &format!("root:x:0:\nsidecar:x:{USER}:\n")),
        text("etc/nsswitch.conf", "hosts: files dns\n"),
        file(ROOTS_IN_IMAGE, 0o644, &roots()?)?,
        directory("run/sidecar", 0o755),
        directory("tmp", 0o1777),
    ];
    for library in libraries(binary)? {
        entries.push(file(&library, 0o755, &library)?);
    }
    for package in ["libc6", "libgcc-s1", "ca-certificates"] {
        // Debian's statement of their licences; elsewhere they are not in files of these names.
        let copyright = PathBuf::from(format!("/usr/share/doc/{package}/copyright"));
        if copyright.is_file() {
            entries.push(file(&copyright, 0o644, &copyright)?);
        }
    }
    Ok(entries)
}

/// What changes with every build.
///
/// # Errors
/// If it cannot be read.
pub fn sidecar(stripped: &Path) -> Result<Vec<Entry>> {
    let licence = crate::paths::root().join("LICENSE");
    Ok(vec![
        file("sidecar", 0o755, stripped)?,
        file("LICENSE", 0o644, &licence)?,
    ])
}

fn roots() -> Result<PathBuf> {
    ROOTS
        .iter()
        .map(PathBuf::from)
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "no file of public root certificates ({}). Install ca-certificates",
                ROOTS.join(", ")
            )
        })
}

/// The shared libraries of `binary` and their loader; none if it is static.
fn libraries(binary: &Path) -> Result<Vec<PathBuf>> {
    let mut ldd = Command::new("ldd");
    // What this process was told to prefer is not what a node has.
    ldd.arg(binary).env_remove("LD_LIBRARY_PATH");
    let output = ldd.output().context("starting ldd")?;
    let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && !told.contains("not a dynamic executable") {
        bail!("ldd {}: {}", binary.display(), told.trim());
    }
    named(&told)
}

/// The files that ldd's output names.
fn named(told: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in told.lines().map(str::trim) {
        let place = line.split_once(" => ").map_or(line, |(_, place)| place);
        if place.starts_with("not found") {
            bail!("a library of the binary is missing on this machine: {line}");
        }
        // The kernel's own (linux-vdso) has no path.
        if let Some((path, _)) = place.split_once(" (0x")
            && path.starts_with('/')
        {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

fn file(path: impl AsRef<Path>, mode: u32, source: &Path) -> Result<Entry> {
    let bytes = std::fs::read(source).with_context(|| format!("reading {}", source.display()))?;
    Ok(Entry {
        path: relative(path.as_ref()),
        mode,
        content: Content::File(bytes),
    })
}

fn text(path: &str, text: &str) -> Entry {
    Entry {
        path: path.into(),
        mode: 0o644,
        content: Content::File(text.as_bytes().to_vec()),
    }
}

fn directory(path: &str, mode: u32) -> Entry {
    Entry {
        path: path.into(),
        mode,
        content: Content::Directory,
    }
}

fn relative(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_says() {
        let told = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f0)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f1)\n";
        assert_eq!(
            named(told).unwrap(),
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
            .map(PathBuf::from)
        );
        assert!(named("\tstatically linked\n").unwrap().is_empty());
        assert!(named("\tlibodd.so.1 => not found\n").is_err());
    }

    #[test]
    fn the_loader_of_a_real_program_is_found() {
        let found = libraries(&std::env::current_exe().unwrap()).unwrap();
        let has = |part: &str| {
            found
                .iter()
                .any(|path| path.to_string_lossy().contains(part))
        };
        assert!(has("libc.so") && has("ld-linux"), "{found:?}");
    }
}
