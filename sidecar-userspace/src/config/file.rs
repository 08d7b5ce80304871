//! The keys of the configuration file. Each is defined here, or below, and nowhere else: the JSON Schema and the
//! reference page take their descriptions from the comments, their bounds from the types.
//!
//! Every key is optional unless its description says otherwise, and one that is left empty counts as absent.

pub mod authorization;
pub mod identity;
pub mod jwt;
pub mod route;
pub mod service;
pub mod traffic;

use schemars::JsonSchema;
use serde::Deserialize;

use self::{
    authorization::Authorization,
    identity::Identity,
    jwt::RequestAuthentication,
    route::Route,
    service::Service,
    traffic::{Inbound, Outbound, PortExclude},
};
use super::{
    scalar::{Marked, Number, Setting, Size, Time},
    value::{Bind, FilePath, ListenPort, Name},
};
use crate::model::{AccessLogFormat, FailRule, Level, cgroup::CgroupPattern};

/// One millisecond to a day.
pub type Timeout = Time<1, 86_400_000>;
/// As [`Timeout`]; zero: none.
pub type TimeoutOrNone = Time<0, 86_400_000>;

/// Configuration of a sidecar. An empty file is a valid one.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct File {
    /// Who the sidecar speaks for.
    pub workload: Option<Workload>,
    /// Who the workload is, proved by a certificate, and whom it believes. The files in it are read again whenever they
    /// change. Another identity is for connections from then on; where it cannot be had, the new configuration is refused
    /// as a whole. Absent: nobody, and no connection is encrypted.
    pub identity: Option<Marked<Identity>>,
    /// The workload's own connections.
    pub outbound: Option<Outbound>,
    /// Connections to the workload.
    pub inbound: Option<Inbound>,
    /// Names that stand for endpoints.
    pub services: Option<Vec<Service>>,
    /// Which service answers a request, by host and path; as Gateway API's HTTPRoute.
    pub routes: Option<Vec<Route>>,
    /// What may pass: policies with the names and the meaning of Istio's AuthorizationPolicy.
    pub authorization: Option<Authorization>,
    /// Tokens of users in requests to the workload, as Istio's RequestAuthentication. A request without a token passes
    /// and has no user; one with a token that is not valid is answered with 401.
    pub request_authentication: Option<RequestAuthentication>,
    /// Moving messages past the TCP/IP stack between sockets of this node.
    pub redirect: Option<Redirect>,
    /// What happens to the workload's traffic while no sidecar runs: `closed` refuses it, `open` lets it
    /// bypass the sidecar.
    pub fail_rule: Option<Setting<FailRule>>,
    /// Where the sidecar listens. Read at start only. Ports must differ; 0 takes a free one.
    pub listeners: Option<Listeners>,
    /// Bounds on what the sidecar takes on.
    pub limits: Option<Limits>,
    /// How long the sidecar waits.
    pub timeouts: Option<Timeouts>,
    /// From start to end, for a sidecar that the node's agent has enrolled.
    pub lifecycle: Option<Lifecycle>,
    /// One line for each request and each TCP connection.
    pub access_log: Option<AccessLog>,
    /// Threads that serve connections; 0: one for each CPU. Absent: half as many as there are CPUs, and two at most.
    /// Read at start only.
    pub workers: Option<Setting<Number<usize, 0, 256>>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Workload {
    /// Its name in logs and metrics.
    pub name: Option<Setting<Name>>,
    /// Its namespace in logs and metrics.
    pub namespace: Option<Setting<Name>>,
    /// Processes that run within its cgroup and are not of it.
    pub exclude: Option<WorkloadExclude>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WorkloadExclude {
    /// Cgroups below the application's: connections that their processes make, or accept, do not come to the sidecar. A
    /// cgroup that is made later counts within a quarter of a second; sockets that are open already stay as they are.
    pub cgroups: Option<Vec<Setting<CgroupPattern>>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Redirect {
    /// Whether it is used where the kernel can do it safely.
    pub enabled: Option<Setting<bool>>,
    /// How far it goes at most. A kernel that lacks something goes less far by itself: `sidecar check` says why.
    pub level: Option<Setting<Level>>,
    /// Learn for each port whether redirect pays there (it does for requests and answers, not for bulk), and leave
    /// new connections to the others on TCP.
    pub adaptive: Option<Setting<bool>>,
    /// Bytes that may be redirected in one direction of one flow and not yet be read. More memory for longer
    /// bursts past the stack; beyond it proxies use TCP towards each other, and wait for the application.
    pub credit: Option<Setting<Size<u32, 1, 0x4000_0000>>>,
    /// Flows that stay on TCP.
    pub exclude: Option<PortExclude>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Listeners {
    /// The explicit proxy, and what others than the kernel half redirect to the sidecar; loopback only.
    pub outbound: Option<Setting<ListenPort>>,
    /// The application's steered connections; loopback only. Whoever connects here without having been steered is refused.
    /// By default the port after that of `outbound`.
    pub steered: Option<Setting<ListenPort>>,
    /// Steered connections from elsewhere.
    pub inbound: Option<Setting<ListenPort>>,
    /// Administration; loopback only.
    pub admin: Option<Setting<ListenPort>>,
    /// `/stats/prometheus`. A bare port is one of 127.0.0.1.
    pub metrics: Option<Setting<Bind>>,
    /// `/healthz/ready`. A bare port is one of 127.0.0.1.
    pub health: Option<Setting<Bind>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Limits {
    /// Connections served at once; more are reset, with a reason in the log. Absent: as many as the memory limit of the sidecar's
    /// control group suffices for, 10000 at most; the log says at start how many that are.
    pub connections: Option<Setting<Number<usize, 1, 10_000_000>>>,
    /// Bytes of the head of a request or response.
    pub header_bytes: Option<Setting<Size<usize, 8192, 0x100_0000>>>,
    /// Header fields of a request or response.
    pub headers: Option<Setting<Number<usize, 1, 10_000>>>,
    /// Bytes that one relay buffer may grow to.
    pub buffer_bytes: Option<Setting<Size<usize, 1024, 0x100_0000>>>,
    /// Idle connections that one worker keeps to one endpoint.
    pub idle_connections_per_endpoint: Option<Setting<Number<usize, 0, 100_000>>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Timeouts {
    /// To establish a connection.
    pub connect: Option<Setting<Timeout>>,
    /// A TCP connection on which no byte moves in either direction is ended after this; 0s: never.
    pub idle: Option<Setting<TimeoutOrNone>>,
    /// From the first byte of a request to the end of its head.
    pub request_head: Option<Setting<Timeout>>,
    /// An HTTP connection without a request is closed after this.
    pub http_idle: Option<Setting<Timeout>>,
    /// Until the TLS handshake of a connection to the workload is complete.
    pub tls_handshake: Option<Setting<Timeout>>,
    /// An idle connection's first keepalive probe is sent after this.
    pub keepalive: Option<Setting<Time<1_000, 32_767_000>>>,
    /// A peer that has answered nothing for about so long, while data waits for it, is gone. One that answers and takes
    /// no data is only slow. Before Linux 6.15 it is `TCP_USER_TIMEOUT`, two minutes at least, and slow ones end too.
    pub user: Option<Setting<Time<15_000, 1_800_000>>>,
    /// How long connections may go on after SIGTERM.
    pub drain: Option<Setting<Time<1, 3_600_000>>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Lifecycle {
    /// Whether the sidecar ends, with exit code 0, when others have been in its pod and none is left, so that a Job
    /// comes to its end. A native sidecar container, which the kubelet ends, needs `false`: it may be alone between two
    /// containers.
    pub exit_when_alone: Option<Setting<bool>>,
    /// How long it must have been alone for that: longer than the application takes to come back where it is started
    /// anew after a failure, as the kubelet does within 5 minutes unless `restartPolicy` is `Never`.
    pub alone_for: Option<Setting<TimeoutOrNone>>,
    /// How long the sidecar goes on after SIGTERM while the application still runs, so that it can finish. Then comes
    /// the drain. The two together should be less than the pod's grace period.
    pub wait_for_application: Option<Setting<TimeoutOrNone>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AccessLog {
    /// `json`: one object a line; `text`: one line for people; `none`.
    pub format: Option<Setting<AccessLogFormat>>,
    /// A file that is appended to, or a device such as `/dev/stdout`.
    pub path: Option<Setting<FilePath>>,
}
