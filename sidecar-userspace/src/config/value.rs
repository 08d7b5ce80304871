//! The kinds of values that are peculiar to a sidecar: choices, names, addresses, paths.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use schemars::{Schema, json_schema};

use super::{
    error::Expected,
    file::service::TlsMode,
    scalar::{Number, Scalar},
};
use crate::{
    fetch::Place,
    identity::{SpiffeId, TrustDomain},
    model::{
        self, AccessLogFormat, Cidr, FailRule, HostMatch, InboundCapture, IpProtocol, Level, Mtls,
        Protocol, UnknownDestination, cgroup::CgroupPattern,
    },
    policy::{Action, PathNormalization, Posture},
    tls::MinVersion,
};

/// A port that can be connected to.
pub type Port = Number<u16, 1, 65535>;
/// A port to listen on; 0 takes a free one.
pub type ListenPort = Number<u16, 0, 65535>;
/// A share of the traffic, bounded as in Gateway API.
pub type Weight = Number<u32, 0, 1_000_000>;

/// A value that is one of a few words.
pub trait Choice: Copy + PartialEq + 'static {
    /// Of two words for one value the first is written.
    const WORDS: &[(&str, Self)];

    fn word(self) -> &'static str {
        let mut words = Self::WORDS.iter();
        let found = words.find(|(_, value)| *value == self);
        found.map_or("", |(word, _)| word)
    }
}

/// Implements [`Choice`] and [`Scalar`] for an enum.
macro_rules! choice {
    ($type:ty { $($word:literal => $value:ident),+ $(,)? }) => {
        impl Choice for $type {
            const WORDS: &[(&str, Self)] = &[$(($word, Self::$value)),+];
        }

        impl Scalar for $type {
            type Value = Self;

            fn expected() -> Expected {
                format!("one of {}", [$($word),+].join(", ")).into()
            }

            fn parse(text: &str) -> Result<Self, Expected> {
                let mut words = Self::WORDS.iter();
                let found = words.find(|(word, _)| *word == text);
                found.map(|(_, value)| *value).ok_or_else(<Self as Scalar>::expected)
            }

            fn schema() -> Schema {
                json_schema!({ "enum": [$($word),+] })
            }
        }
    };
}

choice!(UnknownDestination { "passthrough" => Passthrough, "registryOnly" => RegistryOnly });
choice!(InboundCapture { "workload" => Workload, "listed" => Listed, "none" => None });
choice!(Action { "ALLOW" => Allow, "DENY" => Deny, "AUDIT" => Audit });
choice!(Posture { "allow" => Allow, "deny" => Deny });
choice!(PathNormalization {
    "strict" => Strict, "none" => None, "base" => Base, "mergeSlashes" => MergeSlashes,
    "decodeAndMergeSlashes" => DecodeAndMergeSlashes
});
choice!(Level {
    "off" => Off,
    "between-proxies" => BetweenProxies,
    "towards-proxies" => TowardsProxies,
    "towards-applications" => TowardsApplications,
    "joined" => Joined,
});
choice!(FailRule { "closed" => Closed, "open" => Open });
choice!(Mtls { "disable" => Disable, "permissive" => Permissive, "strict" => Strict });
choice!(MinVersion { "1.3" => Tls13, "1.2" => Tls12 });
choice!(TlsMode { "mesh" => Mesh, "simple" => Simple, "mutual" => Mutual, "disable" => Disable });
choice!(AccessLogFormat { "json" => Json, "text" => Text, "none" => None });
choice!(Protocol {
    "auto" => Auto, "tcp" => Tcp, "http" => Http, "http2" => Http2, "grpc" => Http2
});

/// How a path is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathType {
    Exact,
    Prefix,
}

choice!(PathType { "PathPrefix" => Prefix, "Exact" => Exact });

impl Scalar for Cidr {
    type Value = Self;

    fn expected() -> Expected {
        "an address or a range of addresses such as 10.0.0.0/8".into()
    }

    fn parse(text: &str) -> Result<Self, Expected> {
        let (address, bits) = text
            .split_once('/')
            .map_or((text, None), |(address, bits)| (address, Some(bits)));
        let expected = <Self as Scalar>::expected;
        let address: IpAddr = address.parse().map_err(|_| expected())?;
        if address != address.to_canonical() {
            return Err("an IPv4 address, not one mapped into IPv6".into());
        }
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => width,
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => {
                bits.parse().map_err(|_| expected())?
            }
            Some(_) => return Err(expected()),
        };
        let around = Self::around(address, bits)
            .ok_or_else(|| format!("a prefix length from /0 to /{width}"))?;
        Self::new(address, bits)
            .ok_or_else(|| format!("zeros beyond the prefix, as in {around}").into())
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$" })
    }
}

impl Scalar for IpProtocol {
    type Value = Self;

    fn expected() -> Expected {
        let names = Self::NAMED.map(|(name, _)| name).join(", ");
        format!("one of {names}, or the number of an IP protocol from 1 to 255").into()
    }

    fn parse(text: &str) -> Result<Self, Expected> {
        let named = Self::NAMED.iter().find(|(name, _)| *name == text);
        match named {
            Some((_, protocol)) => Ok(*protocol),
            None => Number::<u8, 1, 255>::parse(text)
                .map(Self)
                .map_err(|_| <Self as Scalar>::expected()),
        }
    }

    fn schema() -> Schema {
        let names = Self::NAMED.map(|(name, _)| name);
        json_schema!({ "anyOf": [
            { "enum": names },
            { "type": "integer", "minimum": 1, "maximum": 255 },
        ] })
    }
}

/// A name for services, routes and workloads: it stands in logs, metrics and paths.
pub struct Name;

impl Scalar for Name {
    type Value = String;

    fn expected() -> Expected {
        "a name of at most 253 letters, digits, '-', '_' and '.', with a letter or digit at both ends"
            .into()
    }

    fn parse(text: &str) -> Result<String, Expected> {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let outer = |byte: Option<char>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
        let ends = outer(text.chars().next()) && outer(text.chars().next_back());
        let good = ends && text.len() <= 253 && text.bytes().all(inner);
        good.then(|| text.to_owned()).ok_or_else(Self::expected)
    }

    fn schema() -> Schema {
        json_schema!({
            "type": "string", "maxLength": 253, "pattern": "^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
        })
    }
}

/// A host by which clients call a service.
pub struct Host;

impl Scalar for Host {
    type Value = String;

    fn expected() -> Expected {
        "a host name such as orders.example.org, without a port".into()
    }

    fn parse(text: &str) -> Result<String, Expected> {
        host(text).ok_or_else(Self::expected)
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "maxLength": 254, "pattern": "^[-A-Za-z0-9_.]+$" })
    }
}

impl Scalar for HostMatch {
    type Value = Self;

    fn expected() -> Expected {
        "a host name such as shop.example.org or *.example.org, without a port".into()
    }

    fn parse(text: &str) -> Result<Self, Expected> {
        let parsed = match text.strip_prefix("*.") {
            Some(domain) => host(domain).map(|domain| Self::Suffix(format!(".{domain}"))),
            None => host(text).map(Self::Exact),
        };
        let every = || "a host name; leave out hostnames for every host".into();
        match parsed {
            None if text == "*" => Err(every()),
            parsed => parsed.ok_or_else(<Self as Scalar>::expected),
        }
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "maxLength": 254, "pattern": r"^(\*\.)?[-A-Za-z0-9_.]+$" })
    }
}

/// `text` in lower case and without its trailing dot, if it is a host name.
fn host(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len())
            && label.bytes().all(good)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    (text.len() <= 253 && text.split('.').all(label)).then(|| text.to_ascii_lowercase())
}

impl Scalar for model::EndpointAddress {
    type Value = Self;

    fn expected() -> Expected {
        "an address such as 10.1.0.2 or a host name, without a port".into()
    }

    fn parse(text: &str) -> Result<Self, Expected> {
        match text.parse::<IpAddr>() {
            Ok(ip) if ip.is_unspecified() || ip.is_multicast() => {
                Err("an address that can be connected to".into())
            }
            Ok(ip) => Ok(Self::Ip(ip.to_canonical())),
            // Four numbers and dots that are no address are a mistake, not a name.
            Err(_)
                if text
                    .bytes()
                    .all(|byte| byte == b'.' || byte.is_ascii_digit()) =>
            {
                Err(<Self as Scalar>::expected())
            }
            Err(_) => host(text)
                .map(Self::Name)
                .ok_or_else(<Self as Scalar>::expected),
        }
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "maxLength": 254, "pattern": "^[-A-Za-z0-9_.:]+$" })
    }
}

/// A path to compare with, restricted as in Gateway API.
pub struct PathText;

impl Scalar for PathText {
    type Value = String;

    fn expected() -> Expected {
        "a path such as /orders: a slash in front, at most 1024 characters, escaped where needed, \
         without //, /./, /../, ? and #"
            .into()
    }

    fn parse(text: &str) -> Result<String, Expected> {
        let plain =
            |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%".contains(&byte);
        let escapes = |tail: &str| {
            let hex = |byte: &u8| byte.is_ascii_hexdigit();
            let escaped = tail.as_bytes().get(..2);
            escaped.is_some_and(|hexes| hexes.iter().all(hex) && !hexes.eq_ignore_ascii_case(b"2f"))
        };
        let good = text.starts_with('/')
            && text.len() <= 1024
            && text.bytes().all(plain)
            && text.split('%').skip(1).all(escapes)
            && !text.contains("//")
            && text
                .split('/')
                .all(|segment| segment != "." && segment != "..");
        good.then(|| text.to_owned()).ok_or_else(Self::expected)
    }

    fn schema() -> Schema {
        json_schema!({
            "type": "string", "maxLength": 1024,
            "pattern": "^/([-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9a-fA-F]{2})*$"
        })
    }
}

/// Where a listener of the sidecar's own binds: a port of the loopback address, or address and port.
pub struct Bind;

impl Scalar for Bind {
    type Value = SocketAddr;

    fn expected() -> Expected {
        "a port, or address and port such as 0.0.0.0:15020".into()
    }

    fn parse(text: &str) -> Result<SocketAddr, Expected> {
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        ListenPort::parse(text)
            .map(loopback)
            .or_else(|_| text.parse().map_err(|_| Self::expected()))
    }

    fn schema() -> Schema {
        json_schema!({
            "type": ["integer", "string"], "minimum": 0, "maximum": 65535,
            "pattern": r"^([0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$"
        })
    }
}

impl Scalar for SpiffeId {
    type Value = Self;

    fn expected() -> Expected {
        "a SPIFFE id such as spiffe://cluster.local/ns/default/sa/orders".into()
    }

    fn parse(text: &str) -> Result<Self, Expected> {
        let why = |why| format!("{}: {why}", <Self as Scalar>::expected()).into();
        Self::parse(text).map_err(why)
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "maxLength": 2048, "pattern": "^spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+$" })
    }
}

impl Scalar for TrustDomain {
    type Value = Self;

    fn expected() -> Expected {
        "the name of a trust domain such as cluster.local".into()
    }

    fn parse(text: &str) -> Result<Self, Expected> {
        Self::parse(text).map_err(|_| <Self as Scalar>::expected())
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "maxLength": 255, "pattern": "^[a-z0-9._-]+$" })
    }
}

/// The socket of a Workload API.
pub struct Socket;

impl Scalar for Socket {
    type Value = String;

    fn expected() -> Expected {
        "a Unix socket such as unix:///run/spire/agent.sock".into()
    }

    fn parse(text: &str) -> Result<String, Expected> {
        let path = text.strip_prefix("unix:");
        let good = path.is_some_and(|path| path.starts_with('/') && !path.contains('\0'));
        good.then(|| text.to_owned()).ok_or_else(Self::expected)
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^unix:/" })
    }
}

/// Where something is fetched.
pub struct Url;

impl Scalar for Url {
    type Value = Place;

    fn expected() -> Expected {
        "a URL with http or https, a host and no user, such as https://issuer.example/keys".into()
    }

    fn parse(text: &str) -> Result<Place, Expected> {
        Place::parse(text).ok_or_else(Self::expected)
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^https?://[^@/]+(/.*)?$" })
    }
}

/// A file.
pub struct FilePath;

impl Scalar for FilePath {
    type Value = PathBuf;

    fn expected() -> Expected {
        "the absolute path of a file".into()
    }

    fn parse(text: &str) -> Result<PathBuf, Expected> {
        let good = text.starts_with('/') && !text.contains('\0') && text.len() < 4096;
        good.then(|| PathBuf::from(text)).ok_or_else(Self::expected)
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^/" })
    }
}
impl Scalar for CgroupPattern {
    type Value = Self;

    fn expected() -> Expected {
        "a path below the application's cgroup such as batch or jobs/*".into()
    }

    fn parse(text: &str) -> Result<Self, Expected> {
        Self::new(text).ok_or_else(<Self as Scalar>::expected)
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^[^/]+(/[^/]+)*$" })
    }
}
