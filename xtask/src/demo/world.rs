//! The demo's world: a network namespace each for client and server, joined by a veth pair, and a control group for the client.
//!
//! All names hold this process's id, so several demos can run at once, and what a killed one left can be told.

use crate::{leftovers, process};
use anyhow::{Context as _, Result, anyhow, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::{
    fmt, fs,
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

const PREFIX: &str = "sidecar-demo-";

/// Dropped, it takes everything apart again.
pub struct World {
    pub client: Host,
    pub server: Host,
    /// The client's control group, beside the namespaces: what runs in it is behind the client's sidecar.
    pub control_group: PathBuf,
    /// Configuration, logs and the served file.
    pub directory: PathBuf,
    /// For [`leftovers::RUN_VARIABLE`] in every process of the demo.
    pub run: String,
}

/// A network namespace with one interface.
#[derive(Clone)]
pub struct Host {
    name: String,
    pub v4: IpAddr,
    pub v6: IpAddr,
}

impl Host {
    /// The file that stands for the namespace.
    pub fn namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Does `work` in the namespace. A thread that enters one does not come back, hence one for this alone.
    ///
    /// # Errors
    /// If the namespace cannot be entered, and those of `work`.
    pub fn within<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let namespace = fs::File::open(self.namespace())
            .with_context(|| format!("opening namespace {}", self.name))?;
        let thread = std::thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .context("entering a namespace")?;
            work()
        });
        thread.join().map_err(|_| anyhow!("a thread panicked"))?
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "namespace {} ({}, {})",
            self.name, self.v4, self.v6
        )
    }
}

impl World {
    /// Makes it.
    ///
    /// # Errors
    /// If the kernel or `ip` refuses; then what was made is undone.
    pub fn make(run: &str) -> Result<Self> {
        let name = |what: &str| format!("{PREFIX}{}-{what}", std::process::id());
        // Addresses that are reserved for documentation (RFC 5737, RFC 3849): no route of this machine can be meant.
        let host = |what: &str, last: u16| Host {
            name: name(what),
            v4: IpAddr::from([192, 0, 2, u8::try_from(last).unwrap_or_default()]),
            v6: IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]),
        };
        let world = Self {
            client: host("client", 1),
            server: host("server", 2),
            control_group: control_groups()?.join(name("programs")),
            directory: std::env::temp_dir().join(name("files")),
            run: run.to_owned(),
        };
        world.build()?;
        Ok(world)
    }

    fn build(&self) -> Result<()> {
        fs::create_dir_all(&self.directory)
            .with_context(|| format!("creating {}", self.directory.display()))?;
        fs::create_dir(&self.control_group)
            .with_context(|| format!("creating {}", self.control_group.display()))?;
        let (client, server) = (&self.client.name, &self.server.name);
        for name in [client, server] {
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        ip(&[
            "link", "add", "eth0", "netns", client, "type", "veth", "peer", "name", "eth0",
            "netns", server,
        ])?;
        for host in [&self.client, &self.server] {
            let within = |arguments: &[&str]| ip(&[&["-n", &host.name], arguments].concat());
            // Without a link-local address, whose duplicates the kernel would look for while it answers nobody.
            within(&["link", "set", "eth0", "addrgenmode", "none"])?;
            let (v4, v6) = (format!("{}/24", host.v4), format!("{}/64", host.v6));
            within(&["addr", "add", &v4, "dev", "eth0"])?;
            within(&["addr", "add", &v6, "dev", "eth0", "nodad"])?;
            within(&["link", "set", "eth0", "up"])?;
        }
        for address in [self.server.v4, self.server.v6] {
            self.client.within(move || until_reachable(address))?;
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for host in [&self.client, &self.server] {
            if host.namespace().exists()
                && let Err(error) = ip(&["netns", "delete", &host.name])
            {
                eprintln!(" ! {error:#}");
            }
        }
        remove_control_group(&self.control_group);
        // A temporary directory that stays is no harm, and said to be left behind by nobody.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Removes what demos left that were killed before they could clean up.
pub fn sweep() {
    for path in of_dead(Path::new("/run/netns")) {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if let Err(error) = ip(&["netns", "delete", &name]) {
            eprintln!(" ! {error:#}");
        }
    }
    for path in control_groups().iter().flat_map(|root| of_dead(root)) {
        remove_control_group(&path);
    }
    for path in of_dead(&std::env::temp_dir()) {
        // Whoever's it is, it does not disturb this demo.
        let _ = fs::remove_dir_all(path);
    }
}

/// The entries of `directory` that are of demos whose process is gone.
fn of_dead(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| is_of_dead(&name.to_string_lossy()))
        })
        .collect()
}

/// Whether `name` is of a demo whose process is gone.
fn is_of_dead(name: &str) -> bool {
    let pid = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split('-').next());
    pid.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists())
}

/// Where cgroup v2 is mounted: /sys/fs/cgroup, or beside v1 somewhere below.
fn control_groups() -> Result<PathBuf> {
    let mounts =
        fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    leftovers::mounted(&mounts, "cgroup2")
        .into_iter()
        .next()
        .context("cgroup v2 is not mounted. Mount it: mount -t cgroup2 none /sys/fs/cgroup")
}

/// Its last process may be on its way out, and as long the kernel says EBUSY; so it does while there are groups below.
fn remove_control_group(path: &Path) {
    for below in fs::read_dir(path)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
    {
        if below.is_dir() {
            remove_control_group(&below);
        }
    }
    for _ in 0..300 {
        match fs::remove_dir(path) {
            Ok(()) => return,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
    eprintln!(
        " ! {} could not be removed: a process is in it",
        path.display()
    );
}

/// A new link loses its first packets, neighbour discovery's among them; the demo's requests shall not wait for their repetition.
fn until_reachable(address: IpAddr) -> Result<()> {
    let started = Instant::now();
    loop {
        // Nothing listens there, so to be refused is to be answered.
        match TcpStream::connect_timeout(&SocketAddr::new(address, 1), Duration::from_millis(200)) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => return Ok(()),
            _ if started.elapsed() < Duration::from_secs(60) => {}
            other => bail!("{address} does not answer over the veth pair: {other:?}"),
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    process::output(Command::new("ip").args(arguments)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_dead_demos_left_is_swept() {
        let alive = format!("{PREFIX}{}-client", std::process::id());
        assert!(!is_of_dead(&alive));
        // Above the kernel's highest pid.
        assert!(is_of_dead("sidecar-demo-4194305-client"));
        assert!(!is_of_dead("sidecar-demo-mine"));
        assert!(!is_of_dead("other"));
    }
}
