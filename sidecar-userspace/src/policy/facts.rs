//! What is known of a connection or a request when policy is asked.

use std::net::IpAddr;

use http::HeaderMap;
use serde_json::{Map, Value};

use crate::identity::SpiffeId;

/// One connection, or one request on it.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The client's address.
    pub source_ip: IpAddr,
    /// Who the client has proved to be.
    pub principal: Option<&'a SpiffeId>,
    /// Where it goes; `None` where only a name is known.
    pub destination_ip: Option<IpAddr>,
    pub destination_port: Option<u16>,
    /// `None`: opaque bytes.
    pub http: Option<Request<'a>>,
}

/// The request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub method: &'a str,
    /// As [`super::normalize::host`] gives it; empty: none.
    pub host: &'a str,
    /// As [`super::normalize::path`] gives it to compare; empty: none.
    pub path: &'a str,
    pub headers: &'a HeaderMap,
    /// Of its token, which has been verified.
    pub claims: Option<&'a Claims>,
}

/// What a verified token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    all: Map<String, Value>,
    /// `issuer/subject`.
    principal: Option<String>,
}

impl Claims {
    pub fn new(all: Map<String, Value>) -> Self {
        let text = |name: &str| all.get(name).and_then(Value::as_str);
        let principal = match (text("iss"), text("sub")) {
            (Some(issuer), Some(subject)) => Some(format!("{issuer}/{subject}")),
            _ => None,
        };
        Self { all, principal }
    }

    /// `issuer/subject`; `None` if one of them is missing.
    pub fn principal(&self) -> Option<&str> {
        self.principal.as_deref()
    }

    /// The texts of the claim at `path`: itself or the members of a list. `scope` and `permission`, which by
    /// convention are lists with spaces, are taken apart as well. Numbers and truth values count by their JSON.
    pub fn each<S: AsRef<str>>(&self, path: &[S], found: &mut dyn FnMut(&str)) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        let Some(value) = rest
            .iter()
            .try_fold(self.all.get(first.as_ref()), |value, name| {
                value.map(|value| value.get(name.as_ref()))
            })
            .flatten()
        else {
            return;
        };
        let spaced = rest.is_empty() && matches!(first.as_ref(), "scope" | "permission");
        match value {
            Value::String(text) if spaced => text.split_ascii_whitespace().for_each(found),
            Value::Array(list) => list.iter().for_each(|value| scalar(value, found)),
            value => scalar(value, found),
        }
    }
}

fn scalar(value: &Value, found: &mut dyn FnMut(&str)) {
    match value {
        Value::String(text) => found(text),
        Value::Bool(_) | Value::Number(_) => found(&value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => {}
    }
}
