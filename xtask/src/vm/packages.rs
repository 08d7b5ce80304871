//! Packages of other releases of Debian: looked up and unpacked with an apt configuration of our own, so that neither the
//! machine's sources nor what is installed on it change.

use crate::{process, step};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const NETWORK: &str = "Check the network, and that the machine's own mirror has this release.";

/// Which of Debian's archives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Archive {
    Debian,
    Security,
}

impl Archive {
    /// As `Label` in its Release files.
    fn label(self) -> &'static str {
        match self {
            Self::Debian => "Debian",
            Self::Security => "Debian-Security",
        }
    }
}

/// The lists of some suites.
pub struct Packages {
    directory: PathBuf,
}

impl Packages {
    /// Fetches the lists of `suites` from the mirrors that the machine itself uses.
    ///
    /// # Errors
    /// If the machine is not Debian, or a list cannot be had.
    pub fn of(name: &str, suites: &[(Archive, &str)]) -> Result<Self> {
        if !Path::new("/usr/bin/apt-get").is_file() {
            bail!("downloading kernels is written for Debian: this machine has no apt-get");
        }
        let directory = super::directory().join("apt").join(name);
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(part))
                .with_context(|| format!("creating {}", directory.display()))?;
        }
        let mut sources = String::new();
        for (archive, suite) in suites {
            let mirror = mirror(*archive)?;
            sources += &format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        }
        let list = directory.join("sources.list");
        fs::write(&list, sources).with_context(|| format!("writing {}", list.display()))?;
        let packages = Self { directory };
        step::run(
            &format!("fetching the package lists for kernel {name}"),
            NETWORK,
            packages.apt("/usr/bin/apt-get").arg("update"),
        )?;
        Ok(packages)
    }

    /// The newest version of `package` that begins with `start`.
    ///
    /// # Errors
    /// If there is none.
    pub fn newest(&self, package: &str, start: &str) -> Result<String> {
        let said = process::output(self.apt("/usr/bin/apt-cache").args(["madison", package]))?;
        versions(&said)
            .find(|version| version.starts_with(start))
            .map(str::to_owned)
            .with_context(|| format!("no {package} {start}* there"))
    }

    /// The packages that `package` (`name` or `name=version`) depends on.
    ///
    /// # Errors
    /// If there is no such package.
    pub fn depends(&self, package: &str) -> Result<Vec<String>> {
        let mut command = self.apt("/usr/bin/apt-cache");
        let said = process::output(command.args(["show", "--no-all-versions", package]))?;
        Ok(depends(&said))
    }

    /// Downloads `packages` and unpacks them into `directory`, which appears when it is complete.
    ///
    /// # Errors
    /// If one cannot be had or is broken.
    pub fn unpack(&self, packages: &[String], directory: &Path) -> Result<()> {
        let partial = directory.with_added_extension("part");
        let _ = fs::remove_dir_all(&partial);
        let debs = partial.join("debs");
        fs::create_dir_all(&debs).with_context(|| format!("creating {}", debs.display()))?;
        let mut download = self.apt("/usr/bin/apt-get");
        download.arg("download").args(packages).current_dir(&debs);
        step::run(
            &format!("downloading {}", packages[0]),
            NETWORK,
            &mut download,
        )?;
        for entry in fs::read_dir(&debs).context("reading what was downloaded")? {
            let deb = entry.context("reading what was downloaded")?.path();
            let mut unpack = Command::new("dpkg-deb");
            unpack.arg("--extract").arg(&deb).arg(&partial);
            let title = format!(
                "unpacking {}",
                deb.file_name().unwrap_or_default().display()
            );
            step::run(&title, "Is the disk full?", &mut unpack)?;
        }
        fs::remove_dir_all(&debs).context("removing what was unpacked")?;
        fs::rename(&partial, directory)
            .with_context(|| format!("completing {}", directory.display()))
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        process::clean(&mut command);
        let at = |path: &str| self.directory.join(path).display().to_string();
        for setting in [
            format!("Dir::Etc::sourcelist={}", at("sources.list")),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State::lists={}", at("lists")),
            format!("Dir::Cache={}", at("cache")),
            // apt's own user may not be able to write below here.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ] {
            command.args(["-o", &setting]);
        }
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where the machine itself gets packages of the archive from.
fn mirror(archive: Archive) -> Result<String> {
    let mut command = Command::new("/usr/bin/apt-get");
    process::clean(&mut command);
    command.args([
        "indextargets",
        "--format",
        "$(LABEL) $(REPO_URI)",
        "Created-By: Packages",
    ]);
    let said = process::output(&mut command)?;
    mirror_in(&said, archive).with_context(|| {
        let label = archive.label();
        format!("apt knows no mirror of {label}: run `apt-get update`, with Debian in its sources")
    })
}

fn mirror_in(said: &str, archive: Archive) -> Option<String> {
    said.lines().find_map(|line| {
        let (label, mirror) = line.split_once(' ')?;
        (label == archive.label()).then(|| mirror.to_owned())
    })
}

/// The versions that `apt-cache madison` lists, the newest first.
fn versions(said: &str) -> impl Iterator<Item = &str> {
    said.lines()
        .filter_map(|line| line.split('|').nth(1))
        .map(str::trim)
}

/// The names on the line Depends of `apt-cache show`; of alternatives the first.
fn depends(said: &str) -> Vec<String> {
    let line = said.lines().find_map(|line| line.strip_prefix("Depends: "));
    let items = line.unwrap_or_default().split(", ");
    let names = items.filter_map(|item| item.split([' ', '|', ':']).next());
    names
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn what_apt_says_is_read() {
        let madison = " linux-image-cloud-amd64 | 7.3.4-1~bpo13+1 | http://mirror trixie-backports/main amd64 Packages\n linux-image-cloud-amd64 |   7.2.13-1 | http://mirror sid/main amd64 Packages\n";
        assert_eq!(
            versions(madison).collect::<Vec<_>>(),
            ["7.3.4-1~bpo13+1", "7.2.13-1"]
        );
        let show = "Package: a\nPre-Depends: x\nDepends: dracut | initramfs-tools (>= 1), linux-modules-7 (= 7-1), kmod\n";
        assert_eq!(depends(show), ["dracut", "linux-modules-7", "kmod"]);
        let targets = "Debian-Security http://mirror/security/\nDebian http://mirror/debian/\n";
        assert_eq!(
            mirror_in(targets, Archive::Debian).as_deref(),
            Some("http://mirror/debian/")
        );
        assert_eq!(mirror_in("Ubuntu http://u/\n", Archive::Debian), None);
    }
}
