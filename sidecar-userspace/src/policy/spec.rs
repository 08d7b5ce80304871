//! Policies as they are written: the names and the meaning of Istio's AuthorizationPolicy, without CUSTOM.

use std::sync::Arc;

use crate::model::Cidr;

/// What a policy does with what one of its rules matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Lets it pass, and with that refuses whatever no ALLOW policy matches.
    Allow,
    /// Refuses it, whatever else allows it.
    Deny,
    /// Notes it in the log and decides nothing.
    Audit,
}

/// What holds where there is no ALLOW policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Posture {
    Allow,
    Deny,
}

/// Rules with one action. Without rules it matches nothing: as ALLOW it refuses everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub name: Arc<str>,
    pub action: Action,
    /// One of them has to match.
    pub rules: Vec<Rule>,
}

/// All three parts have to match; an empty part matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// One of them.
    pub from: Vec<Source>,
    /// One of them.
    pub to: Vec<Operation>,
    /// All of them.
    pub when: Vec<Condition>,
}

/// Who asks. All that is set has to match; of a list, one value; of a `not` list, none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// `cluster.local/ns/default/sa/web`: a SPIFFE id without its scheme.
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    /// Of the principal.
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    /// Of the connection's client.
    pub ip_blocks: Vec<Cidr>,
    pub not_ip_blocks: Vec<Cidr>,
    /// `issuer/subject` of a token. HTTP only.
    pub request_principals: Vec<String>,
    pub not_request_principals: Vec<String>,
}

/// What is asked for, as [`Source`]. All but ports is HTTP only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Operation {
    /// Compared without regard to case, port and trailing dot.
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    pub ports: Vec<u16>,
    pub not_ports: Vec<u16>,
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    /// Of the normalised path, without query; templates with `{*}` and `{**}` as well.
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
}

/// One attribute by its key, see [`super::attribute::Attribute`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    pub key: String,
    pub values: Vec<String>,
    pub not_values: Vec<String>,
}

impl Action {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
        }
    }
}
