//! Routes: from the host and the path of a request to the service that answers it.

use std::{fmt, sync::Arc, time::Duration};

use super::Service;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub name: Arc<str>,
    /// Empty: every host.
    pub hosts: Vec<HostMatch>,
    /// Sorted, the most specific match first: exact before prefix, longer before shorter, then the file's order.
    pub rules: Vec<RouteRule>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostMatch {
    /// Lower case, no port, no trailing dot.
    Exact(String),
    /// `*.example.org`, kept as `.example.org`: one or more labels before it.
    Suffix(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteRule {
    pub path: PathMatch,
    /// Never empty; weights sum to more than 0.
    pub backends: Vec<Backend>,
    /// Time for the whole request, from its head to the end of the response; `None`: no limit.
    pub request_timeout: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PathMatch {
    Exact(String),
    /// Matches whole segments, as Gateway API's PathPrefix: `/a` matches `/a` and `/a/b`, not `/ab`.
    Prefix(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    pub service: Arc<Service>,
    /// Port of the service; `None`: the port that the client asked for.
    pub port: Option<u16>,
    pub weight: u32,
}

impl HostMatch {
    /// `host`: lower case, without port and trailing dot.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => name == host,
            Self::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
        }
    }
}

impl fmt::Display for HostMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
        }
    }
}

impl PathMatch {
    /// A prefix as segments: without its trailing slash, so that `/` is the empty string.
    pub(super) fn segments(prefix: &str) -> &str {
        prefix.strip_suffix('/').unwrap_or(prefix)
    }

    /// `path`: without query.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == path,
            Self::Prefix(prefix) => path
                .strip_prefix(Self::segments(prefix))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_matches_whole_segments() {
        let prefix = PathMatch::Prefix("/api".into());
        assert!(prefix.matches("/api"));
        assert!(prefix.matches("/api/v1"));
        assert!(!prefix.matches("/apiary"));
        assert!(PathMatch::Prefix("/".into()).matches("/anything"));
        assert!(PathMatch::Prefix("/a/".into()).matches("/a"));
    }

    #[test]
    fn suffix_needs_a_label() {
        let suffix = HostMatch::Suffix(".example.org".into());
        assert!(suffix.matches("a.example.org"));
        assert!(suffix.matches("a.b.example.org"));
        assert!(!suffix.matches(".example.org"));
        assert!(!suffix.matches("example.org"));
    }
}
