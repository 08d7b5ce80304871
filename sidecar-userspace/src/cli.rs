//! The command line: verbs change state, nouns only read.

pub mod inject;

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;

use crate::{
    enrol::{DEFAULT_SOCKET, pod::Workloads},
    identity::{SpiffeId, TrustDomain},
    kernel::pins::DEFAULT_DIRECTORY,
    model::cgroup::CgroupPattern,
};

/// An eBPF-accelerated sidecar: mTLS, policy, traffic management and telemetry beside an unmodified application,
/// without iptables.
#[derive(Debug, Parser)]
#[command(name = "sidecar", version, after_help = AFTER_HELP, max_term_width = 110)]
pub struct Cli {
    /// What is logged to standard error: error, warn, info, debug, or a filter such as `sidecar=debug`.
    #[arg(
        long,
        global = true,
        env = "SIDECAR_LOG",
        default_value = "info",
        value_name = "FILTER"
    )]
    pub log: String,

    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 it failed, 2 usage or configuration; `run` exits with its command's code, `explain` with 1 for a denial.

Examples:
  sidecar check                                what works on this machine, and what to do about the rest
  sudo sidecar run -- ./app                    an application behind a sidecar, with the built-in settings
  sudo sidecar run -c sidecar.yaml -- ./app
  sudo sidecar run --cgroup /my.slice/app      a sidecar for processes that run already";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run an application behind a sidecar on this machine (root).
    Run(Run),
    /// Run the proxy alone: whoever steers connections to it, it needs no privilege.
    Proxy(Proxy),
    /// Attach for the sidecars of this node, which need no privilege then (root). Ending it changes nothing for them.
    Agent(Agent),
    /// Put sidecars into the pods of Kubernetes objects: of files, or of a cluster as its webhook.
    Inject(Box<inject::Inject>),
    /// Make a certification authority for this machine, and certificates of its.
    Ca(Ca),
    /// Tell what works here and what does not: kernel, privileges, self-test, configuration.
    Check(Check),
    /// Tell what would become of a connection or request: its way through the configuration, each policy and why it
    /// matches or not, and the verdict. Without traffic; exit code 0 allowed, 1 denied.
    Explain(Explain),
    /// Show the workloads of this node, what is attached for them and what the kernel half counted (root).
    Inspect(Inspect),
    /// Tell whether the sidecar beside is ready: exit code 0, else 1.
    Ready(Ready),
    /// Remove what sidecars that were killed have left attached (root).
    Detach(Detach),
    /// Print the JSON Schema of the configuration file.
    Schema,
    /// Print shell completions.
    Completions { shell: Shell },
    /// Print the manual page, or that of a command.
    Man { command: Option<String> },
    /// Enter a cgroup, then become a command. `run` starts the application with it.
    #[command(hide = true)]
    Enter(Enter),
}

#[derive(Debug, Args)]
pub struct Config {
    /// Configuration file (YAML); without one the built-in settings apply.
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Pins {
    /// Directory on bpffs for what the sidecars of this node share. Sidecars redirect to each other only if they
    /// share it.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIRECTORY, value_hint = ValueHint::DirPath)]
    pub bpffs: PathBuf,
}

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub config: Config,

    #[command(flatten)]
    pub pins: Pins,

    /// An existing cgroup (v2) whose processes are the application; without it the sidecar makes one.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::DirPath)]
    pub cgroup: Option<PathBuf>,

    /// The application and its arguments; without it the sidecar runs until it is told to stop.
    #[arg(trailing_var_arg = true, value_name = "CMD", value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct Proxy {
    #[command(flatten)]
    pub config: Config,

    /// An absent configuration file counts as an empty one.
    #[arg(long, requires = "config")]
    pub optional_config: bool,

    /// What the pod puts over the configuration, in its shape: workload, identity, outbound.exclude, inbound.capture, ports and
    /// exclude, failRule, listeners, lifecycle. `sidecar inject` writes it.
    #[arg(long, env = "SIDECAR_SETTINGS", value_name = "YAML")]
    pub settings: Option<String>,

    /// The node's agent, which steers connections to this proxy: its socket, such as /run/sidecar/agent.sock. Without
    /// it somebody else has to.
    #[arg(long, env = "SIDECAR_AGENT", value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    pub agent: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Agent {
    #[command(flatten)]
    pub serve: Serve,

    #[command(subcommand)]
    pub verb: Option<AgentVerb>,
}

#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    pub pins: Pins,

    /// Where sidecars enrol.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, value_hint = ValueHint::FilePath)]
    pub socket: PathBuf,

    /// Workloads whose proxies do not enrol themselves: Envoy, or any other that asks for SO_ORIGINAL_DST. The file lists
    /// under `workloads` for each its `cgroup`, the `proxy`'s below that, `outboundPort`, `inboundPort` and `steering`.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub byo_proxy: Option<PathBuf>,

    /// A cgroup that is one workload, with its sidecar's cgroup and its application's in it, such as /my.slice/shop; a `*` stands
    /// for a part of a name (/my.slice/*). May be given several times. Needed for cgroups that are not called as the kubelet's or
    /// podman's pods are: whatever runs below one of these is steered by any sidecar in it. Never name what holds containers of
    /// several owners, such as /docker.
    #[arg(long, value_name = "PATTERN", value_parser = Workloads::pattern)]
    pub workload_cgroup: Vec<CgroupPattern>,

    /// The kubelet's cgroup, such as /system.slice/kubelet.service: connections of processes in it reach applications without
    /// their proxies, so that probes work whatever mutual TLS or policy a pod asks for. May be given several times; `none`: there
    /// is none. Without it the usual ones are looked for.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::DirPath)]
    pub kubelet_cgroup: Vec<PathBuf>,

    /// Serve the kubelet as the CSI driver agent.sidecar.internal, whose volume is the directory of the socket: for pods that
    /// must not have hostPath volumes. DIR is the kubelet's, usually /var/lib/kubelet, at the same path as for the kubelet.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub csi: Option<PathBuf>,

    /// Metrics, health and the list of workloads.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15098")]
    pub admin: SocketAddr,

    /// Take the taint sidecar.internal/agent-not-ready from this node of a Kubernetes cluster once sidecars can enrol.
    #[arg(long, env = "SIDECAR_UNTAINT", value_name = "NODE")]
    pub untaint: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum AgentVerb {
    /// Detach all pods and remove everything that agents have left on this node; the agent must have ended. Says what was
    /// removed; exit code 1 if something stays.
    Uninstall(Uninstall),
}

#[derive(Debug, Args)]
pub struct Uninstall {
    #[command(flatten)]
    pub pins: Pins,
}

#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    pub config: Config,

    #[command(flatten)]
    pub pins: Pins,

    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Of the embedded authority.
const CA_DIRECTORY: &str = "/var/lib/sidecar/ca";

#[derive(Debug, Args)]
pub struct Ca {
    #[command(subcommand)]
    pub verb: CaVerb,
}

#[derive(Debug, Subcommand)]
pub enum CaVerb {
    /// Make a root certificate and its key in a directory that has none.
    Init(Init),
    /// Make a certificate for a workload, and its key.
    Issue(Issue),
}

#[derive(Debug, Args)]
pub struct Init {
    /// Where ca.crt and ca.key are to be.
    #[arg(long, value_name = "DIR", default_value = CA_DIRECTORY, value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,

    /// The trust domain whose root it is.
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub trust_domain: TrustDomain,

    /// How long the root is valid, such as 8760h.
    #[arg(long, value_name = "TIME", default_value = "87600h")]
    pub lifetime: Lifetime,
}

#[derive(Debug, Args)]
pub struct Issue {
    /// The directory of the authority.
    #[arg(long, value_name = "DIR", default_value = CA_DIRECTORY, value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,

    /// The workload's SPIFFE id, such as spiffe://cluster.local/ns/default/sa/orders.
    #[arg(long, value_name = "SPIFFE_ID")]
    pub id: SpiffeId,

    /// Where tls.crt, tls.key and ca.crt are written.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub out: PathBuf,

    /// How long the certificate is valid, such as 24h or 90m.
    #[arg(long, value_name = "TIME", default_value = "24h")]
    pub lifetime: Lifetime,
}

/// From a second to a hundred years.
#[derive(Debug, Clone, Copy)]
pub struct Lifetime(pub Duration);

impl FromStr for Lifetime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        crate::config::duration(text)
            .filter(|time| *time >= Duration::from_secs(1))
            .map(Self)
            .ok_or_else(|| "a time such as 24h or 90m, at least 1s".to_owned())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExplainDirection {
    /// To the workload.
    Inbound,
    /// From the workload.
    Outbound,
}

#[derive(Debug, Args)]
pub struct Explain {
    #[command(flatten)]
    pub config: Config,

    #[arg(long, value_enum, default_value = "inbound")]
    pub direction: ExplainDirection,

    /// The client's address.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub source: IpAddr,

    /// Who the client has proved to be, such as cluster.local/ns/default/sa/web.
    #[arg(long, value_name = "ID")]
    pub principal: Option<String>,

    /// The address that the client asks for.
    #[arg(long, value_name = "IP")]
    pub destination: Option<IpAddr>,

    /// The port that the client asks for.
    #[arg(long, value_name = "PORT")]
    pub port: u16,

    /// Opaque bytes instead of a request.
    #[arg(long, conflicts_with_all = ["method", "host", "path", "header", "claims"])]
    pub tcp: bool,

    #[arg(long, default_value = "GET")]
    pub method: String,

    /// As in the request's `Host`.
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,

    /// With a query, if it has one.
    #[arg(long, default_value = "/")]
    pub path: String,

    /// A field of the request, as `name: value`; may be given several times.
    #[arg(long, value_name = "FIELD")]
    pub header: Vec<String>,

    /// What a verified token says, as JSON.
    #[arg(long, value_name = "JSON")]
    pub claims: Option<String>,

    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Inspect {
    #[command(flatten)]
    pub pins: Pins,

    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Ready {
    /// Wait until it is, for so long at most, such as 60s.
    #[arg(long, value_name = "TIME")]
    pub wait: Option<Lifetime>,

    /// Its health endpoint.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15021")]
    pub address: SocketAddr,
}

#[derive(Debug, Args)]
pub struct Detach {
    #[command(flatten)]
    pub pins: Pins,

    /// Workloads to detach; without a name, all whose sidecar is gone.
    #[arg(value_name = "WORKLOAD")]
    pub workloads: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Enter {
    #[arg(long, value_name = "PATH")]
    pub cgroup: PathBuf,

    #[arg(trailing_var_arg = true, required = true)]
    pub command: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_two_dashes_is_the_command() {
        let cli = Cli::try_parse_from(["sidecar", "run", "-c", "a.yaml", "--", "app", "-c", "x"])
            .unwrap();
        let Command::Run(run) = cli.command else {
            panic!("not run")
        };
        assert_eq!(run.command, ["app", "-c", "x"]);
        assert_eq!(run.config.config, Some("a.yaml".into()));
    }
}
