//! A node: podman with storage, networks and mounts of its own, so that the manifests are played as they are and touch nothing of the
//! machine's. Only the cgroups of its pods are where podman has them, below `libpod_parent`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sidecar_tests::{
    manifests,
    world::{Finished, Running, World, cgroup, programs::packaged},
};

use crate::{SOON, cgroups, image};

/// Dropping it ends and removes its pods, images and networks.
pub struct Node<'w> {
    world: &'w World,
    directory: PathBuf,
    /// Keeps the mount namespace.
    keeper: Running,
    /// Commands so far; each has a log of its own.
    commands: std::cell::Cell<u32>,
    /// The ids of all pods that were played.
    pods: std::cell::RefCell<Vec<String>>,
}

/// crun does not work where cgroup v2 is mounted beside v1, and limits must not need CAP_SYS_RESOURCE. A cgroup namespace of its own is
/// what Kubernetes gives every container that is not privileged.
const CONFIGURATION: &str = r#"
[containers]
cgroupns = "private"
default_ulimits = ["nofile=20000:20000", "nproc=8192:8192"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "netavark"
"#;

const USUAL: &str = "containers.conf";
/// For pods with `hostPID`, which version 4.3 does not know.
const HOST_PID: &str = "host-pid.conf";

impl<'w> Node<'w> {
    /// One with the image of the sidecar and that of the applications, and nothing running.
    pub fn new(world: &'w World) -> Result<Self> {
        let directory = world.directory().join("node");
        for part in ["root", "runroot", "tmp", "networks"] {
            fs::create_dir_all(directory.join(part))?;
        }
        fs::write(directory.join(USUAL), CONFIGURATION)?;
        let of_the_node = CONFIGURATION.replace("[containers]", "[containers]\npidns = \"host\"");
        fs::write(directory.join(HOST_PID), of_the_node)?;
        // What two nodes would share: podman's names and addresses of pods, the agent's socket.
        for place in ["/run/containers", "/run/sidecar"] {
            fs::create_dir_all(place)?;
        }
        cgroups::sweep()?;
        let unshare = packaged("unshare", "util-linux")?;
        let mut command = world.command_beside("node", &unshare)?;
        let mounts = "mount -t bpf bpf /sys/fs/bpf && mount -t tmpfs tmpfs /run/containers \
            && mount -t tmpfs tmpfs /run/sidecar && echo mounted && exec sleep infinity";
        command.args(["--mount", "--propagation", "private", "sh", "-c", mounts]);
        let mut keeper = Running::start("node", world.directory(), &mut command)?;
        keeper.line("mounted")?;
        let node = Self {
            world,
            directory,
            keeper,
            commands: 0.into(),
            pods: Vec::new().into(),
        };
        let archive = image::sidecar()?;
        node.podman(&["load", "--quiet", "--input", text(&archive)?])?;
        let applications = image::applications(world.directory())?;
        node.podman(&["load", "--quiet", "--input", text(&applications)?])?;
        Ok(node)
    }

    /// Runs podman to its successful end.
    pub fn podman(&self, arguments: &[&str]) -> Result<Finished> {
        self.try_podman(arguments)?.success()
    }

    /// Runs podman to its end.
    pub fn try_podman(&self, arguments: &[&str]) -> Result<Finished> {
        self.run(USUAL, arguments)
    }

    fn run(&self, configuration: &str, arguments: &[&str]) -> Result<Finished> {
        let number = self.commands.get() + 1;
        self.commands.set(number);
        let nsenter = packaged("nsenter", "util-linux")?;
        let mut command = self.world.command_beside("node", &nsenter)?;
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", self.keeper.pid()))
            .arg(packaged("podman", "podman")?)
            .args(self.places())
            .args(arguments)
            .env("CONTAINERS_CONF", self.directory.join(configuration));
        let name = format!("podman-{number}-{}", arguments.first().unwrap_or(&""));
        Running::start(&name, self.world.directory(), &mut command)?.finish(SOON)
    }

    fn places(&self) -> Vec<String> {
        let place = |option: &str, part: &str| {
            let path = self.directory.join(part);
            format!("--{option}={}", path.display())
        };
        vec![
            place("root", "root"),
            place("runroot", "runroot"),
            place("tmpdir", "tmp"),
            place("network-config-dir", "networks"),
        ]
    }

    /// Plays objects: pods, and what they mount.
    pub fn play(&self, name: &str, objects: &[Value]) -> Result<()> {
        let file = self.directory.join(format!("{name}.yaml"));
        fs::write(&file, manifests::text(objects))?;
        let is_of_the_node = objects
            .iter()
            .any(|object| object["spec"]["hostPID"] == true);
        let configuration = if is_of_the_node { HOST_PID } else { USUAL };
        let played = self.run(configuration, &["kube", "play", text(&file)?])?;
        // The line after «Pod:» is its id.
        let lines = played.stdout.lines().zip(played.stdout.lines().skip(1));
        let ids = lines.filter(|(title, _)| *title == "Pod:");
        let ids = ids.map(|(_, id)| id.to_owned());
        self.pods.borrow_mut().extend(ids);
        played.success().map(drop)
    }

    /// Runs a command in a container to its end.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<Finished> {
        self.try_podman(&[&["exec", container], command].concat())
    }

    /// What a container has said.
    pub fn logs(&self, container: &str) -> Result<String> {
        let said = self.podman(&["logs", container])?;
        Ok(said.stdout + &said.stderr)
    }

    /// The end of that, for an error.
    pub fn last_words(&self, container: &str) -> String {
        let said = self.podman(&["logs", "--tail", "20", container]);
        said.map(|said| said.stdout + &said.stderr)
            .unwrap_or_else(|error| format!("{error:#}"))
    }

    pub fn remove_pod(&self, pod: &str) -> Result<()> {
        self.podman(&["pod", "rm", "--force", "--time", "10", pod])
            .map(drop)
    }

    /// A value of `podman inspect`.
    pub fn inspect(&self, container: &str, format: &str) -> Result<String> {
        let found = self.podman(&["inspect", "--format", format, container])?;
        Ok(found.stdout.trim().to_owned())
    }

    pub fn pid(&self, container: &str) -> Result<u32> {
        let pid = self.inspect(container, "{{.State.Pid}}")?;
        pid.parse().with_context(|| format!("a pid: {pid}"))
    }

    /// The container's cgroup in version 2, below the mount point.
    pub fn cgroup(&self, container: &str) -> Result<PathBuf> {
        let listed = fs::read_to_string(format!("/proc/{}/cgroup", self.pid(container)?))?;
        let path = listed.lines().find_map(|line| line.strip_prefix("0::/"));
        Ok(cgroup::root()?.join(path.context("no cgroup v2")?))
    }

    pub fn world(&self) -> &World {
        self.world
    }

    fn clean(&self) -> Result<()> {
        for step in [
            &["pod", "rm", "--all", "--force", "--time", "1"][..],
            &["rm", "--all", "--force", "--time", "1"],
            &["rmi", "--all", "--force"],
        ] {
            self.try_podman(step)?.success()?;
        }
        // podman takes away those of version 1 only.
        self.pods
            .borrow()
            .iter()
            .try_for_each(|pod| cgroups::remove(pod))
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.clean() {
            eprintln!("left behind: {}: {error:#}", self.directory.display());
        }
    }
}

/// The fields of /proc/PID/status that begin with `field`.
pub fn status(pid: u32, field: &str) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    Ok(line
        .with_context(|| format!("no {field}"))?
        .trim()
        .to_owned())
}

/// A sidecar is nobody in particular and may nothing.
pub fn expect_without_privilege(pid: u32) -> Result<()> {
    ensure!(
        status(pid, "Uid:")?.starts_with("1337\t1337"),
        "another user"
    );
    for set in ["CapEff:", "CapPrm:", "CapInh:", "CapBnd:", "CapAmb:"] {
        let held = status(pid, set)?;
        ensure!(held.bytes().all(|byte| byte == b'0'), "{set} {held}");
    }
    ensure!(status(pid, "NoNewPrivs:")? == "1", "it may gain privileges");
    ensure!(status(pid, "Seccomp:")? == "2", "it has no seccomp filter");
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}
