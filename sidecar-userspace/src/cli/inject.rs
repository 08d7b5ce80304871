//! `inject` and what it can be told.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum, ValueHint};

use super::Lifetime;
use crate::{
    inject::{
        AgentVolume, Defaults, Identity, Kind, Resources, annotation::Amount, is_name, quantity,
    },
    kubernetes::api::SERVICE_ACCOUNT,
};

/// What `cargo xtask image` makes.
const IMAGE: &str = concat!("localhost/sidecar:", env!("CARGO_PKG_VERSION"));

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Inject {
    /// Files with Kubernetes objects, YAML or JSON; `-` is standard input. May be given several times. The objects come out at
    /// standard output, with a sidecar in each pod.
    #[arg(short, long, required = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub filename: Vec<PathBuf>,

    /// How the objects come out; several as one List in JSON.
    #[arg(short, long, value_enum, default_value = "yaml")]
    pub output: Output,

    /// The namespace of objects that name none. Without it the kubelet says where they are.
    #[arg(short, long, value_name = "NAME", value_parser = name)]
    pub namespace: Option<String>,

    #[command(flatten)]
    pub what: What,

    #[command(subcommand)]
    pub verb: Option<InjectVerb>,
}

#[derive(Debug, Subcommand)]
pub enum InjectVerb {
    /// Serve the admission webhook of a cluster, which injects pods as they are created.
    Serve(ServeWebhook),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Yaml,
    Json,
}

/// What is put into pods that do not say otherwise.
#[derive(Debug, Args)]
pub struct What {
    /// The image; its entrypoint is `/sidecar`.
    #[arg(long, env = "SIDECAR_IMAGE", value_name = "IMAGE", default_value = IMAGE)]
    pub image: String,

    /// When the kubelet pulls it; absent: as the kubelet does.
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub pull_policy: Option<String>,

    /// How the sidecar is put in: `native`, an init container that goes on (Kubernetes 1.29), or an ordinary `container`,
    /// which init containers bypass.
    #[arg(long, value_enum, default_value = "native")]
    pub sidecar_kind: Kind,

    /// How a pod gets the directory of the agent's socket: `csi`, from the agent's own driver, or `hostPath`, which Pod
    /// Security Standards forbid.
    #[arg(long, value_enum, default_value = "csi")]
    pub agent_volume: AgentVolume,

    /// The directory of the agent's socket.
    #[arg(long, value_name = "DIR", default_value = "/run/sidecar", value_parser = directory)]
    pub agent_directory: String,

    /// A ConfigMap in the namespace of each pod whose `sidecar.yaml` is the configuration; it need not exist.
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub config_map: Option<String>,

    /// Where sidecars have their identity from: `none`, as the configuration says; `csi`, the Workload API through the CSI
    /// driver csi.spiffe.io; `secret/NAME`, a Secret with tls.crt, tls.key and ca.crt.
    #[arg(long, value_name = "WHERE", default_value = "none")]
    pub identity: Identity,

    /// The user and group that sidecars run as.
    #[arg(long, value_name = "UID", default_value = "1337", value_parser = clap::value_parser!(u32).range(1..))]
    pub user: u32,

    /// What a sidecar requests of the CPU, or none.
    #[arg(long, value_name = "QUANTITY", default_value = "50m", value_parser = amount)]
    pub cpu: Quantity,

    /// What a sidecar requests of the memory, or none.
    #[arg(long, value_name = "QUANTITY", default_value = "32Mi", value_parser = amount)]
    pub memory: Quantity,

    /// The limit of a sidecar's CPU, or none.
    #[arg(long, value_name = "QUANTITY", default_value = "none", value_parser = amount)]
    pub cpu_limit: Quantity,

    /// The limit of a sidecar's memory, or none.
    #[arg(long, value_name = "QUANTITY", default_value = "512Mi", value_parser = amount)]
    pub memory_limit: Quantity,

    /// What sidecars log, as `--log`.
    #[arg(long, value_name = "FILTER")]
    pub sidecar_log: Option<String>,

    /// Istio's labels and annotations do not count: for clusters in which Istio injects as well.
    #[arg(long)]
    pub without_istio_names: bool,
}

#[derive(Debug, Args)]
pub struct ServeWebhook {
    /// Where API servers ask.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:8443")]
    pub listen: SocketAddr,

    /// A certificate from elsewhere, such as cert-manager, with the chain behind it; looked at every 10 s. Without it the
    /// webhook makes its own, and needs the API server for that.
    #[arg(long, value_name = "FILE", requires = "tls_key", value_hint = ValueHint::FilePath)]
    pub tls_cert: Option<PathBuf>,

    /// Its key.
    #[arg(long, value_name = "FILE", requires = "tls_cert", value_hint = ValueHint::FilePath)]
    pub tls_key: Option<PathBuf>,

    /// The Service through which API servers ask, in the webhook's namespace: its own certificate is for that.
    #[arg(long, value_name = "NAME", default_value = "sidecar-inject", value_parser = name)]
    pub service: String,

    /// The Secret, in the webhook's namespace, in which its own certificate is kept.
    #[arg(long, value_name = "NAME", default_value = "sidecar-inject-tls", value_parser = name)]
    pub secret: String,

    /// The MutatingWebhookConfiguration that is told whom to believe.
    #[arg(long, value_name = "NAME", default_value = "inject.sidecar.internal", value_parser = name)]
    pub configuration: String,

    /// How long its own certificate is valid; it is renewed after two thirds of that.
    #[arg(long, value_name = "TIME", default_value = "720h")]
    pub certificate_lifetime: Lifetime,

    /// The service account for the API server: token, ca.crt and namespace.
    #[arg(long, value_name = "DIR", default_value = SERVICE_ACCOUNT, value_hint = ValueHint::DirPath)]
    pub service_account: PathBuf,

    #[command(flatten)]
    pub what: What,
}

/// A quantity, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantity(pub Amount);

impl From<What> for Defaults {
    fn from(what: What) -> Self {
        Self {
            image: what.image,
            pull_policy: what.pull_policy,
            kind: what.sidecar_kind,
            agent_volume: what.agent_volume,
            agent_directory: what.agent_directory,
            config_map: what.config_map,
            identity: what.identity,
            user: what.user,
            resources: Resources {
                cpu: what.cpu.0,
                memory: what.memory.0,
                cpu_limit: what.cpu_limit.0,
                memory_limit: what.memory_limit.0,
            },
            log: what.sidecar_log,
            istio_names: !what.without_istio_names,
        }
    }
}

fn name(text: &str) -> Result<String, String> {
    match is_name(text) {
        true => Ok(text.to_owned()),
        false => Err("a name of Kubernetes, such as sidecar".to_owned()),
    }
}

fn directory(text: &str) -> Result<String, String> {
    let path = text.trim_end_matches('/');
    let good = path.starts_with('/')
        && !path.contains([':', '$'])
        && !path.split('/').any(|part| part == "..");
    match good {
        true => Ok(path.to_owned()),
        false => Err("an absolute path without :, $ and ..".to_owned()),
    }
}

fn amount(text: &str) -> Result<Quantity, String> {
    match text {
        "none" => Ok(Quantity(None)),
        _ if quantity::thousandths(text).is_some() => Ok(Quantity(Some(text.to_owned()))),
        _ => Err("a quantity such as 100m or 64Mi, or none".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parsed(arguments: &str) -> Result<Inject, String> {
        let all = std::iter::once("sidecar").chain(arguments.split(' '));
        match Cli::try_parse_from(all)
            .map_err(|error| error.to_string())?
            .command
        {
            Command::Inject(inject) => Ok(*inject),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn offline_and_webhook() {
        let offline = parsed("inject -f a.yaml -f - --agent-volume hostPath --cpu none").unwrap();
        assert_eq!(offline.filename.len(), 2);
        let defaults = Defaults::from(offline.what);
        assert_eq!(defaults.agent_volume, AgentVolume::HostPath);
        assert_eq!(defaults.resources.cpu, None);
        assert_eq!(defaults.image, IMAGE);
        let serve = parsed("inject serve --tls-cert a --tls-key b --identity secret/x").unwrap();
        assert!(matches!(serve.verb, Some(InjectVerb::Serve(_))));
        for wrong in [
            "inject",
            "inject -f a serve",
            "inject serve --tls-cert a",
            "inject -f a --cpu much",
            "inject -f a --identity spire",
            "inject -f a --agent-directory run",
            "inject -f a --user 0",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
