//! The images: the sidecar's, as `cargo xtask image` wrote it, and one of real programs of this machine that stands for those of the
//! example's applications: nginx, curl, busybox, and the libraries that they name.

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sidecar_tests::world::programs::packaged;

/// The archive of the image under test.
pub fn sidecar() -> Result<PathBuf> {
    env::var_os("SIDECAR_IMAGE_ARCHIVE").map(PathBuf::from).context(
        "no image: `cargo xtask test` makes one; or set SIDECAR_IMAGE_ARCHIVE to what `cargo xtask image --profile test-release` prints",
    )
}

/// The names under which manifests ask for the applications' image.
pub const NGINX: &str = "docker.io/nginxinc/nginx-unprivileged:1.27";
pub const CURL: &str = "docker.io/curlimages/curl:8.11.0";

const NGINX_CONFIGURATION: &str = "\
daemon off;
pid /tmp/nginx.pid;
error_log stderr;
worker_processes 1;
events { worker_connections 256; }
http {
  access_log /dev/stdout;
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
  include /etc/nginx/conf.d/*.conf;
}
";

/// An archive that `podman load` takes, in `directory`.
pub fn applications(directory: &Path) -> Result<PathBuf> {
    let root = directory.join("applications");
    for part in [
        "bin",
        "tmp",
        "etc/nginx/conf.d",
        "var/log/nginx",
        "var/lib/nginx",
        "archive",
    ] {
        fs::create_dir_all(root.join(part))?;
    }
    // A volume over it takes its mode over.
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    let busybox = packaged("busybox", "busybox-static")?;
    let nginx = packaged("nginx", "nginx")?;
    let curl = packaged("curl", "curl")?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    for applet in ["sh", "sleep", "cat", "true", "wget"] {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    for program in [&nginx, &curl] {
        put(
            &root,
            program,
            &root
                .join("bin")
                .join(program.file_name().unwrap_or_default()),
        )?;
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/:/bin/sh\napp:x:101:101::/:/bin/sh\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\napp:x:101:\n")?;
    fs::write(root.join("etc/nginx/nginx.conf"), NGINX_CONFIGURATION)?;

    let layer = directory.join("applications-layer.tar");
    tar(&layer, &root, &["bin", "etc", "lib", "lib64", "tmp", "var"])?;
    let archive = root.join("archive");
    fs::rename(&layer, archive.join("layer.tar"))?;
    let digest = sha256(&archive.join("layer.tar"))?;
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Cmd": ["nginx", "-c", "/etc/nginx/nginx.conf"], "Env": ["PATH=/bin"], "User": "101:101" },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    fs::write(archive.join("config.json"), config.to_string())?;
    let manifest =
        json!([{ "Config": "config.json", "RepoTags": [NGINX, CURL], "Layers": ["layer.tar"] }]);
    fs::write(archive.join("manifest.json"), manifest.to_string())?;
    let whole = directory.join("applications.tar");
    tar(
        &whole,
        &archive,
        &["config.json", "layer.tar", "manifest.json"],
    )?;
    fs::remove_dir_all(&root)?;
    Ok(whole)
}

/// Copies a program, and the libraries that it names to where they are on this machine.
fn put(root: &Path, program: &Path, to: &Path) -> Result<()> {
    fs::copy(program, to)?;
    let ldd = Command::new("ldd").arg(program).output()?;
    ensure!(ldd.status.success(), "ldd {}: {ldd:?}", program.display());
    let named = String::from_utf8_lossy(&ldd.stdout).into_owned();
    let libraries = named
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for library in libraries {
        let to = root.join(library.trim_start_matches('/'));
        if let Some(directory) = to.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::copy(library, to).with_context(|| format!("copying {library}"))?;
    }
    Ok(())
}

fn tar(archive: &Path, directory: &Path, what: &[&str]) -> Result<()> {
    let output = Command::new("tar")
        .args(["--owner=0", "--group=0", "--numeric-owner", "-cf"])
        .arg(archive)
        .arg("-C")
        .arg(directory)
        .args(what)
        .output()?;
    ensure!(output.status.success(), "tar: {output:?}");
    Ok(())
}

fn sha256(path: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(path).output()?;
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    let digest = line.split_whitespace().next();
    Ok(digest.context("sha256sum said nothing")?.to_owned())
}
