//! The attributes that rules compare, and where a request has them.

use std::{fmt, net::IpAddr};

use http::HeaderName;

use super::facts::Facts;

/// One attribute. Its text is the key by which `when` names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Attribute {
    Principal,
    Namespace,
    SourceIp,
    RequestPrincipal,
    Audiences,
    Presenter,
    /// The names from the outermost object inwards.
    Claim(Vec<String>),
    Host,
    Method,
    Path,
    Header(HeaderName),
    DestinationIp,
    DestinationPort,
}

/// How an attribute's values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Path,
    /// Text without regard to case.
    Host,
    Ip,
    Port,
}

/// The keys that have no brackets.
const KEYS: &[(&str, Attribute)] = &[
    ("source.principal", Attribute::Principal),
    ("source.namespace", Attribute::Namespace),
    ("source.ip", Attribute::SourceIp),
    ("request.auth.principal", Attribute::RequestPrincipal),
    ("request.auth.audiences", Attribute::Audiences),
    ("request.auth.presenter", Attribute::Presenter),
    ("destination.ip", Attribute::DestinationIp),
    ("destination.port", Attribute::DestinationPort),
];
const HEADERS: &str = "request.headers";
const CLAIMS: &str = "request.auth.claims";

impl Attribute {
    /// The attribute of a condition's key; `None` for an unknown one.
    pub fn of_key(key: &str) -> Option<Self> {
        if let Some((_, attribute)) = KEYS.iter().find(|(name, _)| *name == key) {
            return Some(attribute.clone());
        }
        if let Some(names) = key.strip_prefix(HEADERS) {
            let [name] = brackets(names)?.try_into().ok()?;
            let name: String = name;
            return HeaderName::try_from(name).ok().map(Self::Header);
        }
        key.strip_prefix(CLAIMS).and_then(brackets).map(Self::Claim)
    }

    /// What [`Self::of_key`] knows, for people.
    pub fn keys() -> String {
        let keys: Vec<&str> = KEYS.iter().map(|(name, _)| *name).collect();
        format!("{HEADERS}[name], {CLAIMS}[name], {}", keys.join(", "))
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::SourceIp | Self::DestinationIp => Kind::Ip,
            Self::DestinationPort => Kind::Port,
            Self::Host => Kind::Host,
            Self::Path => Kind::Path,
            _ => Kind::Text,
        }
    }

    /// Whether only a request has it, not a connection.
    pub fn is_http_only(&self) -> bool {
        !matches!(
            self,
            Self::Principal
                | Self::Namespace
                | Self::SourceIp
                | Self::DestinationIp
                | Self::DestinationPort
        )
    }

    /// The texts that `facts` have for it, one after the other.
    pub fn each_text(&self, facts: &Facts<'_>, found: &mut dyn FnMut(&str)) {
        let id = facts.principal;
        match (self, &facts.http) {
            (Self::Principal, _) => id.map(|id| id.principal()).into_iter().for_each(found),
            (Self::Namespace, _) => id.and_then(|id| id.namespace()).into_iter().for_each(found),
            (_, None) => {}
            (Self::Method, Some(request)) => found(request.method),
            (Self::Host, Some(request)) if !request.host.is_empty() => found(request.host),
            (Self::Path, Some(request)) if !request.path.is_empty() => found(request.path),
            (Self::Header(name), Some(request)) => {
                let values = request.headers.get_all(name).iter();
                values.for_each(|value| found(&String::from_utf8_lossy(value.as_bytes())));
            }
            (attribute, Some(request)) => {
                if let Some(claims) = request.claims {
                    claim(attribute, claims, found);
                }
            }
        }
    }

    /// The address that `facts` have for it.
    pub fn ip(&self, facts: &Facts<'_>) -> Option<IpAddr> {
        match self {
            Self::SourceIp => Some(facts.source_ip),
            Self::DestinationIp => facts.destination_ip,
            _ => None,
        }
    }
}

fn claim(attribute: &Attribute, claims: &super::facts::Claims, found: &mut dyn FnMut(&str)) {
    match attribute {
        Attribute::RequestPrincipal => {
            if let Some(principal) = claims.principal() {
                found(principal);
            }
        }
        Attribute::Audiences => claims.each(&["aud"], found),
        Attribute::Presenter => claims.each(&["azp"], found),
        Attribute::Claim(path) => claims.each(path, found),
        _ => {}
    }
}

/// The names in `[a][b]`; `None` if it is anything else.
fn brackets(text: &str) -> Option<Vec<String>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let names: Vec<String> = inner.split("][").map(str::to_owned).collect();
    let good = |name: &String| !name.is_empty() && !name.contains(['[', ']']);
    names.iter().all(good).then_some(names)
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("request.host"),
            Self::Method => f.write_str("request.method"),
            Self::Path => f.write_str("request.path"),
            Self::Header(name) => write!(f, "{HEADERS}[{name}]"),
            Self::Claim(names) => {
                f.write_str(CLAIMS)?;
                names.iter().try_for_each(|name| write!(f, "[{name}]"))
            }
            other => {
                let key = KEYS.iter().find(|(_, attribute)| attribute == other);
                f.write_str(key.map_or("", |(name, _)| name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_and_written() {
        for key in [
            "request.headers[x-tenant]",
            "request.auth.claims[realm][roles]",
            "request.auth.claims[iss]",
            "source.ip",
            "destination.port",
        ] {
            assert_eq!(Attribute::of_key(key).unwrap().to_string(), key);
        }
        for wrong in [
            "",
            "source",
            "request.headers",
            "request.headers[]",
            "request.headers[a][b]",
            "request.headers[a b]",
            "request.auth.claims[a][]",
            "request.auth.claims[a]b",
            "request.method",
        ] {
            assert_eq!(Attribute::of_key(wrong), None, "{wrong}");
        }
    }
}
