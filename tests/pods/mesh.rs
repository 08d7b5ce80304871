//! The stage of these tests: a node with the agent of the shipped manifests on it, and an authority for identities.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::{PermissionsExt as _, chown},
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sidecar_tests::{
    manifests,
    world::{Finished, Metrics, Running, World, http, programs, wait},
};

use crate::{
    SOON,
    injected::{for_podman, injected},
    node::Node,
};

const AGENT_ADMIN: u16 = 15098;
pub const HEALTH: u16 = 15021;

pub struct Mesh<'w> {
    pub node: Node<'w>,
    authority: PathBuf,
}

impl<'w> Mesh<'w> {
    /// With an agent that is ready, from the overlay that needs nothing of a kubelet.
    pub fn new(world: &'w World) -> Result<Self> {
        let node = Node::new(world)?;
        let mesh = Self {
            authority: world.directory().join("ca"),
            node,
        };
        let directory = mesh.authority.display().to_string();
        mesh.sidecar(&["ca", "init", "--directory", &directory])?;
        let objects = manifests::render("overlays/dev")?;
        let agent = manifests::find(&objects, "DaemonSet", "sidecar-agent")?;
        let played = for_podman(std::slice::from_ref(agent), world.directory())?;
        mesh.node.play("agent", &played)?;
        mesh.wait_for_agent()?;
        Ok(mesh)
    }

    pub fn wait_for_agent(&self) -> Result<()> {
        wait::until_true("the agent to be ready", SOON, || {
            Ok(self
                .ask_agent("/ready")
                .is_ok_and(|answer| answer.status == 200))
        })
        .with_context(|| self.node.last_words(AGENT))
    }

    pub fn ask_agent(&self, path: &str) -> Result<http::Answer> {
        self.get(Ipv4Addr::LOCALHOST.into(), AGENT_ADMIN, path)
    }

    /// A GET from the node itself, which no sidecar steers.
    pub fn get(&self, address: IpAddr, port: u16, path: &str) -> Result<http::Answer> {
        let asked = (address, port).into();
        self.node.world().enter(|| http::get(asked, path))?
    }

    /// Events of the kernel half for a workload.
    pub fn events(&self, workload: &str, event: &str) -> Result<u64> {
        let metrics = Metrics::parse(&self.ask_agent("/metrics")?.body_if(200)?);
        let labels = [
            format!("workload=\"{workload}\""),
            format!("event=\"{event}\""),
        ];
        let labels: Vec<_> = labels.iter().map(String::as_str).collect();
        Ok(metrics.sum("sidecar_kernel_events_total", &labels) as u64)
    }

    /// How many pods the agent has attached for.
    pub fn enrolled(&self) -> Result<usize> {
        let listed = self.ask_agent("/workloads")?.body_if(200)?;
        let listed: Value = serde_json::from_str(&listed)?;
        Ok(listed["workloads"].as_array().map_or(0, Vec::len))
    }

    /// Puts sidecars into the pods of `objects`, plays them, and waits until `pod` is steered.
    pub fn play(&self, pod: &str, objects: &[Value]) -> Result<()> {
        let directory = self.node.world().directory();
        let secrets = directory.join("secrets");
        self.issue(&secrets, pod)?;
        let objects = for_podman(&injected(objects, directory)?, &secrets)?;
        self.node.play(pod, &objects)
    }

    /// Until the pod's sidecar says that its connections are steered.
    pub fn wait_for(&self, pod: &str) -> Result<()> {
        let address = self.address(pod)?;
        wait::until_true(&format!("the sidecar of {pod}"), SOON, || {
            let answer = self.get(address, HEALTH, "/healthz/ready");
            Ok(answer.is_ok_and(|answer| answer.status == 200))
        })
        .with_context(|| self.node.last_words(&sidecar_of(pod)))
    }

    pub fn address(&self, pod: &str) -> Result<IpAddr> {
        let infra =
            self.node
                .podman(&["pod", "inspect", "--format", "{{.InfraContainerID}}", pod])?;
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let found = self.node.inspect(infra.stdout.trim(), format)?;
        found
            .parse()
            .with_context(|| format!("an address: {found}"))
    }

    /// The files of the Secret `<name>-identity`, as the kubelet mounts them.
    fn issue(&self, secrets: &std::path::Path, name: &str) -> Result<()> {
        let directory = secrets.join(format!("{name}-identity"));
        fs::create_dir_all(secrets)?;
        let (authority, out) = (
            self.authority.display().to_string(),
            directory.display().to_string(),
        );
        let id = format!("spiffe://cluster.local/ns/shop/sa/{name}");
        self.sidecar(&[
            "ca",
            "issue",
            "--directory",
            &authority,
            "--id",
            &id,
            "--out",
            &out,
        ])?;
        // Those of a Secret are root's, and for everybody to read whom the pod lets.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            chown(&path, Some(0), Some(0))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        }
        Ok(())
    }

    fn sidecar(&self, arguments: &[&str]) -> Result<Finished> {
        let world = self.node.world();
        let mut command = world.command_beside("ca", &programs::sidecar()?)?;
        command.args(arguments);
        Running::start(arguments[1], world.directory(), &mut command)?
            .finish(SOON)?
            .success()
    }

    /// Takes a pod away; nothing of its may be left at the agent.
    pub fn remove(&self, pod: &str) -> Result<()> {
        let cgroup = self.node.cgroup(&sidecar_of(pod))?;
        let before = self.enrolled()?;
        self.node.remove_pod(pod)?;
        ensure!(!cgroup.exists(), "{} is left", cgroup.display());
        wait::until_true(
            "the agent to detach",
            SOON,
            || Ok(self.enrolled()? < before),
        )
    }
}

/// As podman names containers of pods.
pub const AGENT: &str = "sidecar-agent-agent";

pub fn sidecar_of(pod: &str) -> String {
    format!("{pod}-sidecar")
}
