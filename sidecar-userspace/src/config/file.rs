//! The keys of the configuration file. Each is defined here and nowhere else: the JSON Schema and the
//! reference page take their descriptions from the comments, their bounds from the types.
//!
//! Every key is optional unless its description says otherwise, and one that is left empty counts as absent.

use schemars::JsonSchema;
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    error::{ConfigError, Mark, nearest},
    pattern::{
        AnyText, ConditionKey, HeaderText, HostPattern, PathPattern, Pattern, Principal, Text,
    },
    scalar::{Marked, Number, Setting, Size, Time},
    value::{
        Bind, FilePath, Host, ListenPort, Name, PathText, PathType, Port, Socket, Url, Weight,
    },
};
use crate::{
    identity::{SpiffeId, TrustDomain},
    model::{
        AccessLogFormat, Cidr, EndpointAddress, FailRule, HostMatch, InboundCapture, Mtls,
        Protocol, UnknownDestination, cgroup::CgroupPattern,
    },
    policy::{Action, PathNormalization, Posture},
    tls::MinVersion,
};

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

/// One of `files`, `ca` and `workloadApi`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Identity {
    /// PEM files that somebody else renews. They are watched; a renewal drops no connection.
    pub files: Option<IdentityFiles>,
    /// The authority that `sidecar ca init` made, on this machine: the sidecar signs its own certificates and renews
    /// them after two thirds of their life.
    pub ca: Option<IdentityCa>,
    /// The SPIFFE Workload API, as SPIRE's agent serves it.
    pub workload_api: Option<IdentityWorkloadApi>,
    /// Other trust domains whose workloads are believed.
    pub federation: Option<Vec<Federated>>,
    /// The lowest version of TLS between sidecars: `1.3` or `1.2`.
    pub min_tls_version: Option<Setting<MinVersion>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct IdentityFiles {
    /// Required: the certificate, with its SPIFFE id as URI name, and the intermediates behind it.
    pub certificate: Setting<FilePath>,
    /// Required: its key. Nobody but the owner may read the file (mode 0600).
    pub private_key: Setting<FilePath>,
    /// Required: the roots of the workload's trust domain; several while a root is being replaced.
    pub trust_bundle: Setting<FilePath>,
    /// `false` takes a key that others may read: for a Secret of Kubernetes, whose files belong to root and are seen by
    /// one container. Absent: true.
    pub owner_only: Option<Setting<bool>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct IdentityCa {
    /// Required: the directory of the authority.
    pub directory: Setting<FilePath>,
    /// The workload's SPIFFE id. Absent: `spiffe://<trust domain>/ns/<workload.namespace>/sa/<workload.name>`.
    pub id: Option<Setting<SpiffeId>>,
    /// How long a certificate is valid. Absent: 1h.
    pub lifetime: Option<Setting<Time<10_000, 31_536_000_000>>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct IdentityWorkloadApi {
    /// Where it is. Absent: what the environment variable SPIFFE_ENDPOINT_SOCKET says.
    pub socket: Option<Setting<Socket>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Federated {
    /// Required: its name.
    pub trust_domain: Setting<TrustDomain>,
    /// Required: a PEM file with its roots. Watched.
    pub trust_bundle: Setting<FilePath>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Outbound {
    /// What to do with a destination that no service claims: `passthrough` dials the address that the
    /// application asked for, `registryOnly` resets the connection.
    pub unknown: Option<Setting<UnknownDestination>>,
    /// Destinations that are refused: in the kernel, where `connect` fails with EPERM. TCP only, and never loopback.
    pub deny: Option<Vec<EgressRule>>,
    /// Destinations that are not steered to the sidecar.
    pub exclude: Option<OutboundExclude>,
    /// Protocols declared for destination ports, whatever the address. Others are declared by a service or
    /// found out from the first bytes.
    pub ports: Option<Vec<PortProtocol>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EgressRule {
    /// Required, and not that of another rule: it stands in the log.
    pub name: Setting<Name>,
    /// Addresses and ranges of addresses. Absent: every address. One of the two lists is required.
    pub cidrs: Option<Marked<Vec<Setting<Cidr>>>>,
    /// Destination ports. Absent: every port.
    pub ports: Option<Marked<Vec<Setting<Port>>>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct OutboundExclude {
    /// Addresses and ranges of addresses.
    pub cidrs: Option<Vec<Setting<Cidr>>>,
    /// Destination ports.
    pub ports: Option<Vec<Setting<Port>>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PortExclude {
    /// Destination ports.
    pub ports: Option<Vec<Setting<Port>>>,
}

/// A port and how its bytes are to be understood.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PortProtocol {
    /// Required.
    pub port: Setting<Port>,
    /// `auto` finds it out without stalling a protocol in which the server speaks first; `tcp` relays bytes;
    /// `http` is HTTP/1.1, and HTTP/2 from clients that open with its preface; `http2` and `grpc` are HTTP/2
    /// with prior knowledge.
    pub protocol: Option<Setting<Protocol>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Inbound {
    /// Which ports are handed to the sidecar: `workload`, those that the workload listens on; `listed`, those
    /// under `ports`; `none`.
    pub capture: Option<Setting<InboundCapture>>,
    /// Whether connections must be mutual TLS, as in Istio's PeerAuthentication: `strict` takes nothing else;
    /// `permissive` takes plaintext as well, told apart by the first bytes; `disable` leaves TLS to the application.
    /// Absent: `permissive` with an `identity`, else `disable`. On a permissive port, plaintext clients that wait
    /// for the server to speak first wait 300 ms longer.
    pub mtls: Option<Setting<Mtls>>,
    /// What is declared for the workload's ports.
    pub ports: Option<Vec<InboundPort>>,
    /// Ports that are not steered to the sidecar.
    pub exclude: Option<PortExclude>,
}

/// A port of the workload.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct InboundPort {
    /// Required.
    pub port: Setting<Port>,
    /// How its bytes are to be understood, as in `outbound.ports`.
    pub protocol: Option<Setting<Protocol>>,
    /// Absent: the general `inbound.mtls`.
    pub mtls: Option<Setting<Mtls>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Service {
    /// Required, and not that of another service.
    pub name: Setting<Name>,
    /// Hosts by which clients call it. Absent: its name. No host can belong to two services.
    pub hosts: Option<Vec<Setting<Host>>>,
    /// Virtual addresses: a connection to one of them on one of `ports` is for this service. Of overlapping
    /// ranges the longest prefix wins. Connections to the endpoints' own addresses belong to it as well.
    pub addresses: Option<Marked<Vec<Setting<Cidr>>>>,
    /// Its ports and their protocols.
    pub ports: Option<Vec<PortProtocol>>,
    /// Who serves it.
    pub endpoints: Option<Marked<Vec<Endpoint>>>,
    /// Limits on waiting for it.
    pub timeouts: Option<ServiceTimeouts>,
    /// How connections to the endpoints are encrypted. Absent: as the application sends them.
    pub tls: Option<Marked<ServiceTls>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServiceTls {
    /// Required. `mesh`: mutual TLS with the endpoints' sidecars, Istio's ISTIO_MUTUAL; `simple`: TLS to servers
    /// outside the mesh; `mutual`: the same with a client certificate; `disable`.
    pub mode: Setting<TlsMode>,
    /// Required for `mesh`: the SPIFFE ids that the endpoints may have.
    pub subject_alt_names: Option<Vec<Setting<SpiffeId>>>,
    /// For `mesh`: whether connections to ports of the protocol `tcp` share kept connections to the endpoints' sidecars
    /// (HTTP/2 CONNECT), so that a new one needs no handshake; `true` unless said otherwise. Sidecars that know no tunnels
    /// get a connection each all the same.
    pub tunnel: Option<Setting<bool>>,
    /// For `simple` and `mutual`: the server's name, said to it and expected in its certificate. Absent: the service's
    /// first host, else the address.
    pub sni: Option<Setting<Host>>,
    /// For `simple` and `mutual`: a PEM file with the roots that may have signed the server's certificate. Absent: the
    /// system's public roots. The files named here are read when they are needed, and again when they have changed.
    pub ca_certificates: Option<Setting<FilePath>>,
    /// Required for `mutual`: a PEM file with the client certificate.
    pub client_certificate: Option<Setting<FilePath>>,
    /// Required for `mutual`: a PEM file with its key, for nobody but the owner to read (mode 0600).
    pub private_key: Option<Setting<FilePath>>,
}

/// How connections to a service are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    Disable,
    Mesh,
    Simple,
    Mutual,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Endpoint {
    /// Required. Names are resolved when they are dialled.
    pub address: Setting<EndpointAddress>,
    /// Port to dial; absent: the one that the client asked for.
    pub port: Option<Setting<Port>>,
    /// Share of the traffic, relative to the service's other endpoints; 0 takes none, absent is 1.
    pub weight: Option<Setting<Weight>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServiceTimeouts {
    /// To establish a connection to one endpoint. Absent: the general `timeouts.connect`.
    pub connect: Option<Setting<Timeout>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Route {
    /// Required, and not that of another route.
    pub name: Setting<Name>,
    /// Hosts whose requests it takes; `*.` in front stands for one or more labels. Absent: every host. An exact
    /// host comes before a wildcard, a longer wildcard before a shorter one.
    pub hostnames: Option<Vec<Setting<HostMatch>>>,
    /// Required, at least one.
    pub rules: Marked<Vec<Rule>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rule {
    /// The rule holds where one of them does. Absent: every path. An exact path comes before a prefix, a longer
    /// prefix before a shorter one.
    pub matches: Option<Marked<Vec<Match>>>,
    /// Required, at least one: the services that answer.
    pub backend_refs: Marked<Vec<BackendRef>>,
    /// Limits on waiting for them.
    pub timeouts: Option<RuleTimeouts>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Match {
    /// Absent: every path.
    pub path: Option<PathMatch>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PathMatch {
    /// `PathPrefix`, which compares whole segments, or `Exact`. Absent: `PathPrefix`.
    #[serde(rename = "type")]
    pub kind: Option<Setting<PathType>>,
    /// Absent: `/`.
    pub value: Option<Setting<PathText>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct BackendRef {
    /// Required: the name of a service.
    pub name: Setting<Name>,
    /// One of the service's ports; absent: the one that the client asked for.
    pub port: Option<Setting<Port>>,
    /// Share of the requests, relative to the rule's other backends; 0 takes none, absent is 1.
    pub weight: Option<Setting<Weight>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RuleTimeouts {
    /// For the whole request, from its head to the end of the response. Absent or 0s: no limit.
    pub request: Option<Setting<TimeoutOrNone>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Authorization {
    /// What is done to a request's path before policies that name paths see it; the application gets the same.
    /// `base` resolves `/./`, `/../`, backslashes and needless escapes; `mergeSlashes` also `//`;
    /// `decodeAndMergeSlashes` also `%2f` and `%5c`; `strict` does as `mergeSlashes` and answers 400 to what
    /// applications read in different ways: `%2f`, `%5c`, `;` and escaped escapes; `none`.
    pub path_normalization: Option<Setting<PathNormalization>>,
    /// Connections and requests to the workload. Absent: everything is allowed.
    pub inbound: Option<PolicySection>,
    /// The workload's own connections and requests. Absent: everything is allowed.
    pub outbound: Option<PolicySection>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PolicySection {
    /// Required: what holds where there is no ALLOW policy. Where there is one, what none matches is refused.
    pub default: Setting<Posture>,
    /// DENY is asked before ALLOW; AUDIT is noted in the log and decides nothing.
    pub policies: Option<Vec<Policy>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Policy {
    /// Required, and not that of another policy: it stands in logs and metrics.
    pub name: Setting<Name>,
    /// Absent: `ALLOW`.
    pub action: Option<Setting<Action>>,
    /// It matches what one of them matches. Without rules it matches nothing: an ALLOW policy then refuses
    /// everything. A rule `{}` matches everything.
    pub rules: Option<Vec<PolicyRule>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PolicyRule {
    /// Who asks: one of them has to match. Absent: anybody.
    pub from: Option<Marked<Vec<From>>>,
    /// What is asked for: one of them has to match. Absent: anything.
    pub to: Option<Marked<Vec<To>>>,
    /// Further conditions: all of them have to hold.
    pub when: Option<Marked<Vec<When>>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct From {
    /// Required, with at least one key. All its keys have to match; of a list, one value; of a `not` list, none.
    /// Texts may end or begin with a `*`, or be `*`, which wants any value.
    pub source: Marked<Source>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Source {
    /// Identities proved by mTLS, without `spiffe://`.
    pub principals: Option<Marked<Vec<Setting<Principal>>>>,
    /// None of these.
    pub not_principals: Option<Marked<Vec<Setting<Principal>>>>,
    /// Namespaces of such identities.
    pub namespaces: Option<Marked<Vec<Setting<Pattern>>>>,
    /// None of these.
    pub not_namespaces: Option<Marked<Vec<Setting<Pattern>>>>,
    /// The client's address.
    pub ip_blocks: Option<Marked<Vec<Setting<Cidr>>>>,
    /// None of these.
    pub not_ip_blocks: Option<Marked<Vec<Setting<Cidr>>>>,
    /// `issuer/subject` of the request's token. HTTP only.
    pub request_principals: Option<Marked<Vec<Setting<Pattern>>>>,
    /// None of these. HTTP only.
    pub not_request_principals: Option<Marked<Vec<Setting<Pattern>>>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct To {
    /// Required, with at least one key; matches as a source.
    pub operation: Marked<Operation>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Operation {
    /// Hosts, whatever their case, port and trailing dot. HTTP only.
    pub hosts: Option<Marked<Vec<Setting<HostPattern>>>>,
    /// None of these. HTTP only.
    pub not_hosts: Option<Marked<Vec<Setting<HostPattern>>>>,
    /// Ports of the destination.
    pub ports: Option<Marked<Vec<Setting<Port>>>>,
    /// None of these.
    pub not_ports: Option<Marked<Vec<Setting<Port>>>>,
    /// HTTP only.
    pub methods: Option<Marked<Vec<Setting<Pattern>>>>,
    /// None of these. HTTP only.
    pub not_methods: Option<Marked<Vec<Setting<Pattern>>>>,
    /// Paths without query; for gRPC `/package.Service/Method`. `{*}` stands for one segment, `{**}` at the end for any
    /// text. HTTP only.
    pub paths: Option<Marked<Vec<Setting<PathPattern>>>>,
    /// None of these. HTTP only.
    pub not_paths: Option<Marked<Vec<Setting<PathPattern>>>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct When {
    /// Required: what is compared, such as `request.headers[x-tenant]`, `request.auth.claims[groups]`, `source.ip`,
    /// `source.principal`, `source.namespace`, `destination.port`.
    pub key: Setting<ConditionKey>,
    /// One of them has to match.
    pub values: Option<Marked<Vec<Setting<AnyText>>>>,
    /// None of them may match. One of the two lists is required.
    pub not_values: Option<Marked<Vec<Setting<AnyText>>>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RequestAuthentication {
    /// The issuers that are believed. Tokens are signed with RS256, ES256 or EdDSA and have to say when they expire.
    pub jwt_rules: Option<Vec<JwtRule>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct JwtRule {
    /// Required: the token's `iss`.
    pub issuer: Setting<Text>,
    /// One of them has to be in the token's `aud`. Absent: any.
    pub audiences: Option<Marked<Vec<Setting<Text>>>>,
    /// The issuer's public keys, a JSON Web Key Set as text. This, `jwksFile` or `jwksUri` is required.
    pub jwks: Option<Setting<Text>>,
    /// A file with such a set; read again when it changes.
    pub jwks_file: Option<Setting<FilePath>>,
    /// Where such a set is fetched, `https` or `http`: at start, every 5 minutes, and 10 s after the last time where a token
    /// names a key that is not known. If that fails the old keys stay; while there are none, tokens are refused. Redirects
    /// are not followed.
    pub jwks_uri: Option<Setting<Url>>,
    /// For `jwksUri`: a PEM file with the roots that may have signed the server's certificate. Absent: the system's
    /// public roots.
    pub jwks_ca_certificates: Option<Setting<FilePath>>,
    /// Headers that carry tokens. Absent, with `fromParams`: `Authorization` with `Bearer `, and the parameter
    /// `access_token`.
    pub from_headers: Option<Marked<Vec<FromHeader>>>,
    /// Parameters of the query that carry tokens.
    pub from_params: Option<Marked<Vec<Setting<Text>>>>,
    /// Whether the application gets the token. Absent: false, as with Istio.
    pub forward_original_token: Option<Setting<bool>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FromHeader {
    /// Required: the header's name.
    pub name: Setting<HeaderText>,
    /// What stands before the token.
    pub prefix: Option<Setting<Text>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Redirect {
    /// Whether it is used where the kernel can do it safely.
    pub enabled: Option<Setting<bool>>,
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
    /// The application's steered connections, and the explicit proxy; loopback only.
    pub outbound: Option<Setting<ListenPort>>,
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
    /// Connections served at once; more are reset, with a reason in the log.
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

/// Reads the shape of `text`: YAML, known keys, lists and mappings where they belong. The values may still be
/// wrong.
pub(super) fn parse<T: DeserializeOwned + Default>(text: &str) -> Result<T, ConfigError> {
    let options = serde_saphyr::options! {
        // A file in the shape of this one is 13 levels deep; aliases and merges may repeat parts of it, not
        // multiply it.
        budget: serde_saphyr::budget! {
            max_depth: 32, max_documents: 2, max_events: 4_000_000, max_nodes: 2_000_000,
            max_aliases: 1_000, max_merge_keys: 1_000
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
        reject_unsupported_tags: true,
        reject_tagged_field_names: true,
        with_snippet: false
    };
    serde_saphyr::from_str_with_options::<Option<T>>(text, options)
        .map(Option::unwrap_or_default)
        .map_err(|error| explain(text, &error))
}

/// The parser's error in the words of this configuration.
fn explain(text: &str, error: &serde_saphyr::Error) -> ConfigError {
    use serde_saphyr::{Error, MessageFormatter, UserMessageFormatter};

    let mark = error.location().map(|location| Mark {
        line: location.line(),
        column: location.column(),
    });
    let source = mark.and_then(|mark| source_at(text, mark));
    let expected = |what: String| match (mark, source) {
        (Some(mark), Some(source)) => ConfigError::expected(mark, what, source),
        _ => ConfigError::other(mark, format!("expected {what}")),
    };
    match error.without_snippet() {
        Error::SerdeUnknownField {
            field, expected, ..
        } => {
            let hint = nearest(field, expected.iter().copied());
            let hint = hint.map_or(String::new(), |hint| format!(" (perhaps {hint})"));
            let keys = format!("one of the keys {}{hint}", expected.join(", "));
            match mark {
                Some(mark) => ConfigError::expected(mark, keys, field),
                None => ConfigError::other(mark, format!("expected {keys}; found {field:?}")),
            }
        }
        Error::SerdeMissingField { field, .. } => {
            ConfigError::other(mark, format!("expected the key {field}, which is missing"))
        }
        Error::NullIntoString { .. } => expected("a value".to_owned()),
        Error::Unexpected { expected: what, .. } => expected(in_words(what).to_owned()),
        other => {
            let message = UserMessageFormatter.format_message(other);
            let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
            ConfigError::other(mark, message.chars().map(printable).collect::<String>())
        }
    }
}

/// The parser's names for the shapes of values.
fn in_words(shape: &str) -> &str {
    match shape {
        "mapping start" => "keys with values, as in { key: value }",
        "sequence start" => "a list, as in [a, b]",
        "string scalar" => "a single value",
        other => other,
    }
}

/// What stands at `mark`: a list or mapping to the end of its line, else one value.
fn source_at(text: &str, mark: Mark) -> Option<&str> {
    let line = usize::try_from(mark.line.checked_sub(1)?).ok()?;
    let column = usize::try_from(mark.column.checked_sub(1)?).ok()?;
    let line = text.lines().nth(line)?;
    let (start, _) = line.char_indices().nth(column)?;
    let rest = line.get(start..)?.trim_end();
    let end_of_value = |c: char| matches!(c, ',' | ']' | '}') && !rest.starts_with(['[', '{']);
    rest.split(end_of_value).next().map(str::trim_end)
}
