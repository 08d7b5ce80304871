//! The keys under `authorization`: what may pass.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    config::{
        pattern::{AnyText, ConditionKey, HostPattern, PathPattern, Pattern, Principal},
        scalar::{Marked, Setting},
        value::{Name, Port},
    },
    model::Cidr,
    policy::{Action, PathNormalization, Posture},
};

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
