//! Kernels: which there are, and where those that were downloaded before are kept.
//!
//! `target/vm/kernels/<name>/<version>` holds the unpacked packages; nothing is installed.

use super::packages::{Archive, Packages};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// A series of kernels that Debian packages.
struct Series {
    name: &'static str,
    /// What its versions begin with, as the suites may have others as well.
    version: &'static str,
    suites: &'static [(Archive, &'static str)],
}

const SERIES: [Series; 5] = [
    Series {
        name: "5.10",
        version: "5.10.",
        suites: &[
            (Archive::Debian, "bullseye"),
            (Archive::Security, "bullseye-security"),
        ],
    },
    Series {
        name: "6.1",
        version: "6.1.",
        suites: &[
            (Archive::Debian, "bookworm"),
            (Archive::Security, "bookworm-security"),
        ],
    },
    Series {
        name: "6.12-bpo",
        version: "6.12.",
        suites: &[(Archive::Debian, "bookworm-backports")],
    },
    Series {
        name: "6.12",
        version: "6.12.",
        suites: &[
            (Archive::Debian, "trixie"),
            (Archive::Security, "trixie-security"),
        ],
    },
    Series {
        name: "newest",
        version: "",
        suites: &[
            (Archive::Debian, "trixie-backports"),
            (Archive::Debian, "sid"),
        ],
    },
];

/// The package that depends on the current kernel for virtual machines.
const META: &str = "linux-image-cloud-amd64";

/// The names of the series.
pub fn names() -> impl Iterator<Item = &'static str> {
    SERIES.iter().map(|series| series.name)
}

/// A kernel that can be booted.
pub struct Kernel {
    /// As its files are named, and as `uname -r` says.
    pub release: String,
    pub image: PathBuf,
    /// The directory of its modules.
    pub modules: PathBuf,
}

impl Kernel {
    /// The kernel of a series or in a directory. What was downloaded before is taken unless it is to be refreshed.
    ///
    /// # Errors
    /// If there is no such series, or the archives do not have it.
    pub fn get(name: &str, refresh: bool) -> Result<Self> {
        if Path::new(name).is_dir() {
            return Self::within(Path::new(name));
        }
        let series = SERIES.iter().find(|series| series.name == name);
        let Some(series) = series else {
            let known: Vec<_> = names().collect();
            bail!(
                "no kernel «{name}»: give a directory, or one of {}",
                known.join(", ")
            );
        };
        let kept = super::directory().join("kernels").join(name);
        if !refresh && let Some(newest) = newest(&kept) {
            return Self::within(&newest);
        }
        let directory = series
            .download(&kept)
            .with_context(|| format!("Debian's kernel {name} cannot be had"))?;
        Self::within(&directory)
    }

    fn within(directory: &Path) -> Result<Self> {
        // Before and after Debian merged /lib into /usr, and moved the image to the modules.
        let modules = ["usr/lib/modules", "lib/modules"]
            .iter()
            .flat_map(|path| entries(&directory.join(path)))
            .find(|path| path.join("kernel").is_dir())
            .with_context(|| format!("{} has no lib/modules/*/kernel", directory.display()))?;
        let release = file_name(&modules);
        let image = directory.join("boot").join(format!("vmlinuz-{release}"));
        let image = [image, modules.join("vmlinuz")]
            .into_iter()
            .find(|path| path.is_file())
            .with_context(|| format!("{} has no image of {release}", directory.display()))?;
        Ok(Self {
            release,
            image,
            modules,
        })
    }
}

impl Series {
    /// Downloads and unpacks the current kernel of the series, unless it is there already: its directory.
    fn download(&self, kept: &Path) -> Result<PathBuf> {
        let packages = Packages::of(self.name, self.suites)?;
        let version = packages.newest(META, self.version)?;
        let directory = kept.join(&version);
        if directory.is_dir() {
            return Ok(directory);
        }
        let image = packages
            .depends(&format!("{META}={version}"))?
            .into_iter()
            .find(|package| package.starts_with("linux-image-"))
            .with_context(|| format!("{META} {version} names no kernel"))?;
        // Newer packages keep image and modules apart.
        let parts = packages.depends(&image)?;
        let parts = parts.into_iter().filter(|package| {
            package.starts_with("linux-binary-") || package.starts_with("linux-modules-")
        });
        let wanted: Vec<_> = std::iter::once(image.clone()).chain(parts).collect();
        packages.unpack(&wanted, &directory)?;
        Ok(directory)
    }
}

/// The latest of the kernels that were unpacked in `kept`.
fn newest(kept: &Path) -> Option<PathBuf> {
    let made = |path: &Path| fs::metadata(path).and_then(|about| about.modified()).ok();
    entries(kept)
        .into_iter()
        .filter(|path| path.is_dir() && path.extension().is_none_or(|end| end != "part"))
        .max_by_key(|path| made(path).unwrap_or(SystemTime::UNIX_EPOCH))
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(directory).into_iter().flatten().flatten();
    listed.map(|entry| entry.path()).collect()
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn a_kernel_is_found_in_a_directory_wherever_its_modules_are() {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().to_str().unwrap();
        let at = |path: &str| directory.path().join(path);
        for (modules, image) in [
            ("lib/modules/6.6.1-x", "boot/vmlinuz-6.6.1-x"),
            ("usr/lib/modules/6.6.1-x", "usr/lib/modules/6.6.1-x/vmlinuz"),
        ] {
            fs::create_dir_all(at("boot")).unwrap();
            fs::create_dir_all(at(modules).join("kernel")).unwrap();
            assert!(Kernel::get(name, false).is_err());
            fs::write(at(image), "").unwrap();
            let kernel = Kernel::get(name, false).unwrap();
            assert_eq!(kernel.release, "6.6.1-x");
            assert_eq!((kernel.modules, kernel.image), (at(modules), at(image)));
            for made in ["boot", "lib", "usr"] {
                let _ = fs::remove_dir_all(at(made));
            }
        }
    }

    #[test]
    fn an_unknown_kernel_is_told_the_known_ones() {
        let error = Kernel::get("2.6", false).err().unwrap().to_string();
        assert!(error.contains("5.10, 6.1, "), "{error}");
    }
}
