//! Network namespaces, joined by a bridge that has a namespace of its own: nothing touches the machine's network.

use std::{
    fs::{self, File},
    net::IpAddr,
    os::fd::AsFd,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::programs;

/// A named network namespace. Dropping it removes it; it lives on while a process or a socket is in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub fn new(name: &str) -> Result<Self> {
        ip(&[&format!("netns add {name}")])?;
        let namespace = Self {
            name: name.to_owned(),
        };
        // Duplicate address detection would keep IPv6 addresses unusable for a second.
        namespace.sysctl("net.ipv6.conf.all.accept_dad", "0")?;
        namespace.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        ip(&[&format!("-n {name} link set lo up")])?;
        Ok(namespace)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Makes it a bridge for others to be plugged into.
    pub fn bridge(&self) -> Result<()> {
        let name = &self.name;
        ip(&[
            &format!("-n {name} link add br0 type bridge"),
            &format!("-n {name} link set br0 up"),
        ])
    }

    /// Plugs `self` into `bridge` and gives it its addresses.
    pub fn plug_into(&self, bridge: &Self, port: &str, addresses: &[IpAddr]) -> Result<()> {
        let (name, bridge) = (&self.name, &bridge.name);
        ip(&[
            &format!("-n {name} link add eth0 type veth peer name {port} netns {bridge}"),
            &format!("-n {bridge} link set {port} master br0 up"),
        ])?;
        self.bring_up(addresses)
    }

    /// Joins `self` and `other` by a veth pair, and gives each its addresses.
    pub fn join(&self, other: &Self, own: &[IpAddr], others: &[IpAddr]) -> Result<()> {
        let (name, peer) = (&self.name, &other.name);
        ip(&[&format!(
            "-n {name} link add eth0 type veth peer name eth0 netns {peer}"
        )])?;
        self.bring_up(own)?;
        other.bring_up(others)
    }

    fn bring_up(&self, addresses: &[IpAddr]) -> Result<()> {
        addresses
            .iter()
            .try_for_each(|address| self.add_address(*address))?;
        ip(&[&format!("-n {} link set eth0 up", self.name)])
    }

    /// Adds another address to the namespace's interface.
    pub fn add_address(&self, address: IpAddr) -> Result<()> {
        // A look for duplicates would take a second.
        let (bits, flag) = if address.is_ipv4() {
            (24, "")
        } else {
            (64, " nodad")
        };
        ip(&[&format!(
            "-n {} addr add {address}/{bits} dev eth0{flag}",
            self.name
        )])
    }

    /// Has `address` be somebody's on the link who never answers.
    pub fn add_silent_neighbour(&self, address: IpAddr) -> Result<()> {
        // A locally administered address that no interface has.
        ip(&[&format!(
            "-n {} neigh replace {address} lladdr 02:00:00:00:00:00 dev eth0 nud permanent",
            self.name
        )])
    }

    /// Sends so many bits a second at most through the namespace's interface and queues the rest: delay and, to the
    /// kernel, a link like any other.
    pub fn throttle(&self, rate: &str, burst: &str, limit: &str) -> Result<()> {
        let tc = programs::packaged("tc", "iproute2")?;
        let mut command = Command::new(tc);
        command.args([
            "-n", &self.name, "qdisc", "replace", "dev", "eth0", "root", "tbf",
        ]);
        run(command.args(["rate", rate, "burst", burst, "limit", limit]))
    }

    /// Sets a kernel parameter of this namespace, by its dotted name.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        self.enter(|| fs::write(&path, value))?
            .with_context(|| format!("setting {name} to {value}"))
    }

    /// The text of a file under /proc/net as seen from within.
    pub fn proc_net(&self, file: &str) -> Result<String> {
        let path = format!("/proc/thread-self/net/{file}");
        self.enter(|| fs::read_to_string(&path))?
            .with_context(|| format!("reading {path}"))
    }

    /// Runs `work` on a thread within the namespace. Sockets that it makes stay there. The thread is in the test's
    /// own cgroup: no sidecar steers it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        thread::scope(|scope| {
            let entered = scope.spawn(move || -> Result<T> {
                let file =
                    File::open(&path).with_context(|| format!("opening {}", path.display()))?;
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .with_context(|| format!("entering {}", path.display()))?;
                Ok(work())
            });
            entered
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Removes a namespace by name; one that is not there is fine.
pub fn remove(name: &str) {
    let _ = ip(&[&format!("netns del {name}")]);
}

/// Runs `ip` once for each line of arguments.
/// Runs `ip` with each of these lines of arguments.
pub fn ip(lines: &[&str]) -> Result<()> {
    let ip = programs::packaged("ip", "iproute2")?;
    lines
        .iter()
        .try_for_each(|line| run(Command::new(&ip).args(line.split(' '))))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        said.trim()
    );
    Ok(())
}
