//! The keys under `routes`: which service answers a request.

use schemars::JsonSchema;
use serde::Deserialize;

use super::TimeoutOrNone;
use crate::{
    config::{
        scalar::{Marked, Setting},
        value::{Name, PathText, PathType, Port, Weight},
    },
    model::HostMatch,
};

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
