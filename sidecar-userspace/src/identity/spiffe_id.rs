//! SPIFFE ids: `spiffe://<trust domain>/<path>`, most often `spiffe://<trust domain>/ns/<namespace>/sa/<account>`.
//!
//! Parsing is strict, as the [standard](https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md) asks: no
//! other spelling of an id is accepted, so that equal ids are equal texts and policy can compare them.

use std::{fmt, str::FromStr, sync::Arc};

const SCHEME: &str = "spiffe://";
/// Of the whole id, in bytes.
const MAX_ID_BYTES: usize = 2048;
const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// The id of one workload. Cheap to clone; its text is a valid URI in its only spelling.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    /// Where the path begins in `uri`, with its slash.
    path_at: usize,
}

/// The name of a trust domain, such as `cluster.local`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// Why a text is not a SPIFFE id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    #[error("a SPIFFE id begins with spiffe://")]
    Scheme,
    #[error(
        "a SPIFFE id has at most {MAX_ID_BYTES} bytes, and its trust domain at most {MAX_TRUST_DOMAIN_BYTES}"
    )]
    TooLong,
    #[error("a trust domain consists of lower-case letters, digits, dots, dashes and underscores")]
    TrustDomain,
    #[error("the id of a workload has a path, such as /ns/default/sa/web")]
    NoPath,
    #[error(
        "the segments of a path consist of letters, digits, dots, dashes and underscores, and are not . or .."
    )]
    Path,
}

impl SpiffeId {
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > MAX_ID_BYTES {
            return Err(SpiffeIdError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let (trust_domain, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        check_trust_domain(trust_domain)?;
        if path.is_empty() {
            return Err(SpiffeIdError::NoPath);
        }
        // The first piece is what stands before the leading slash: nothing.
        if !path.split('/').skip(1).all(is_segment) {
            return Err(SpiffeIdError::Path);
        }
        Ok(Self {
            uri: text.into(),
            path_at: SCHEME.len() + trust_domain.len(),
        })
    }

    /// The id that Istio and most others give to a service account of a namespace.
    pub fn of_service_account(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeIdError> {
        // A slash in either would make another id of it.
        if !is_segment(namespace) || !is_segment(service_account) {
            return Err(SpiffeIdError::Path);
        }
        Self::parse(&format!(
            "{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}"
        ))
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The id without its scheme: `cluster.local/ns/default/sa/web`, which Istio's policies call a principal.
    pub fn principal(&self) -> &str {
        self.uri.get(SCHEME.len()..).unwrap_or_default()
    }

    pub fn trust_domain(&self) -> &str {
        self.uri.get(SCHEME.len()..self.path_at).unwrap_or_default()
    }

    /// With its leading slash; never empty.
    pub fn path(&self) -> &str {
        self.uri.get(self.path_at..).unwrap_or_default()
    }

    /// Of ids of the form `/ns/<namespace>/sa/<service account>`.
    pub fn namespace(&self) -> Option<&str> {
        Some(self.service_account_parts()?.0)
    }

    /// Of ids of the form `/ns/<namespace>/sa/<service account>`.
    pub fn service_account(&self) -> Option<&str> {
        Some(self.service_account_parts()?.1)
    }

    fn service_account_parts(&self) -> Option<(&str, &str)> {
        let (namespace, rest) = self.path().strip_prefix("/ns/")?.split_once('/')?;
        let account = rest.strip_prefix("sa/")?;
        (!account.contains('/')).then_some((namespace, account))
    }
}

impl TrustDomain {
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        check_trust_domain(text)?;
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_trust_domain(name: &str) -> Result<(), SpiffeIdError> {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    match name {
        name if name.len() > MAX_TRUST_DOMAIN_BYTES => Err(SpiffeIdError::TooLong),
        name if name.is_empty() || !name.bytes().all(allowed) => Err(SpiffeIdError::TrustDomain),
        _ => Ok(()),
    }
}

fn is_segment(segment: &str) -> bool {
    let allowed =
        |byte: u8| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    !matches!(segment, "" | "." | "..") && segment.bytes().all(allowed)
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_service_account_has_its_parts() {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/default/sa/web").unwrap();
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.path(), "/ns/default/sa/web");
        assert_eq!(id.namespace(), Some("default"));
        assert_eq!(id.service_account(), Some("web"));
        assert_eq!(id.principal(), "cluster.local/ns/default/sa/web");
    }

    #[test]
    fn other_paths_have_neither_namespace_nor_account() {
        for path in [
            "/web",
            "/ns/a",
            "/ns/a/sa",
            "/ns/a/sa/b/c",
            "/x/ns/a/sa/b",
            "/ns/a/b/sa/c",
            "/NS/a/sa/b",
        ] {
            let id = SpiffeId::parse(&format!("spiffe://td{path}")).unwrap();
            assert_eq!(
                (id.namespace(), id.service_account()),
                (None, None),
                "{path}"
            );
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        use SpiffeIdError as E;
        for (text, error) in [
            ("", E::Scheme),
            ("https://td/a", E::Scheme),
            ("SPIFFE://td/a", E::Scheme),
            ("spiffe:/td/a", E::Scheme),
            (" spiffe://td/a", E::Scheme),
            ("spiffe://", E::TrustDomain),
            ("spiffe:///a", E::TrustDomain),
            ("spiffe://TD/a", E::TrustDomain),
            ("spiffe://td:80/a", E::TrustDomain),
            ("spiffe://user@td/a", E::TrustDomain),
            ("spiffe://t%64/a", E::TrustDomain),
            ("spiffe://td?q/a", E::TrustDomain),
            ("spiffe://tä/a", E::TrustDomain),
            ("spiffe://td", E::NoPath),
            ("spiffe://td/", E::Path),
            ("spiffe://td/a/", E::Path),
            ("spiffe://td//a", E::Path),
            ("spiffe://td/a/./b", E::Path),
            ("spiffe://td/a/../b", E::Path),
            ("spiffe://td/a%2fb", E::Path),
            ("spiffe://td/a?q", E::Path),
            ("spiffe://td/a#f", E::Path),
            ("spiffe://td/a\0", E::Path),
            ("spiffe://td/ä", E::Path),
            ("spiffe://td/a ", E::Path),
        ] {
            assert_eq!(SpiffeId::parse(text), Err(error), "{text:?}");
        }
        let long = |bytes: usize| format!("spiffe://td/{}", "a".repeat(bytes - 12));
        assert!(SpiffeId::parse(&long(2048)).is_ok());
        assert_eq!(SpiffeId::parse(&long(2049)), Err(E::TooLong));
        assert!(TrustDomain::parse(&"a".repeat(255)).is_ok());
        assert_eq!(TrustDomain::parse(&"a".repeat(256)), Err(E::TooLong));
    }

    proptest! {
        #[test]
        fn what_is_built_is_what_is_parsed(
            trust_domain in "[a-z0-9._-]{1,60}", namespace in "[a-z][a-z0-9-]{0,20}", account in "[A-Za-z0-9_-]{1,20}",
        ) {
            let domain = TrustDomain::parse(&trust_domain).unwrap();
            let id = SpiffeId::of_service_account(&domain, &namespace, &account).unwrap();
            prop_assert_eq!(id.trust_domain(), &trust_domain);
            prop_assert_eq!(id.namespace(), Some(namespace.as_str()));
            prop_assert_eq!(id.service_account(), Some(account.as_str()));
            prop_assert_eq!(id.as_str().parse::<SpiffeId>(), Ok(id.clone()));
        }

        /// Whatever is accepted is made up of its parts and nothing else.
        #[test]
        fn nothing_panics_and_nothing_is_lost(text in "(spiffe://)?[ -~\\PC]{0,40}") {
            if let Ok(id) = SpiffeId::parse(&text) {
                prop_assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
                prop_assert!(id.path().len() > 1);
            }
        }

        #[test]
        fn a_slash_cannot_be_smuggled_into_a_part(
            namespace in "[a-z/.%]{0,12}", account in "[a-z/.%]{0,12}",
        ) {
            let domain = TrustDomain::parse("td").unwrap();
            if let Ok(id) = SpiffeId::of_service_account(&domain, &namespace, &account) {
                prop_assert_eq!(id.namespace(), Some(namespace.as_str()));
                prop_assert_eq!(id.service_account(), Some(account.as_str()));
            }
        }
    }
}
