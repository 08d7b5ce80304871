//! A row of the benchmark: what is sent, and how. Its name says all of it, so that any combination can be asked for:
//!
//! ```text
//! <tcp|http|h2|grpc>[-mtls][-optout]-<body>-<closed|max|newconn>[N]      N connections, one request after the other on each
//! <tcp|http|h2|grpc>[-mtls][-optout]-<body>-open<N>[x<requests a second>]
//! tcp[-mtls]-stream-<bytes of each write>
//! ```

use std::{fmt, str::FromStr};

use anyhow::{Context, Error, Result, bail, ensure};

/// Requests a second in an open loop.
const RATE: u32 = 1000;
/// Connections at once, where each request has one.
const NEW_CONNECTIONS: usize = 16;
/// The largest body that nginx is given.
pub const LARGEST_BODY: usize = 16 * 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub wire: Wire,
    /// Mutual TLS between the proxies.
    pub mtls: bool,
    /// The port is one of `redirect.exclude.ports`.
    pub opt_out: bool,
    pub load: Load,
}

/// What the proxies take the bytes for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// HTTP/1.1 to the client and nginx, opaque to the proxies.
    Tcp,
    Http,
    H2,
    Grpc,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    Requests { body: Bytes, shape: Shape },
    Stream { write: Bytes },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The next request as soon as one is answered: for latency.
    Closed(usize),
    /// The same, for the throughput.
    Max(usize),
    /// At a fixed rate, measured from when each request was due.
    Open { connections: usize, rate: u32 },
    /// One request per connection.
    NewConnection(usize),
}

/// A size, written as `64b`, `1k` or `1m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub usize);

impl FromStr for Row {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        parse(name).with_context(|| {
            format!("no row is called {name}: one is written as tcp-1k-closed1, http-mtls-1k-open16, h2-16k-max32, tcp-mtls-1k-newconn or tcp-stream-64k")
        })
    }
}

fn parse(name: &str) -> Result<Row> {
    let mut words = name.split('-').peekable();
    let wire = match words.next() {
        Some("tcp") => Wire::Tcp,
        Some("http") => Wire::Http,
        Some("h2") => Wire::H2,
        Some("grpc") => Wire::Grpc,
        _ => bail!("it begins with tcp, http, h2 or grpc"),
    };
    let mtls = words.next_if_eq(&"mtls").is_some();
    let opt_out = words.next_if_eq(&"optout").is_some();
    let is_stream = words.next_if_eq(&"stream").is_some();
    let bytes: Bytes = words.next().context("a size is missing")?.parse()?;
    let load = if is_stream {
        ensure!(wire == Wire::Tcp && !opt_out, "streams are of tcp");
        Load::Stream { write: bytes }
    } else {
        let shape: Shape = words.next().context("a shape is missing")?.parse()?;
        ensure!(bytes.0 <= LARGEST_BODY, "a body has 16m at most");
        let several = matches!(wire, Wire::H2 | Wire::Grpc);
        ensure!(
            !(several && matches!(shape, Shape::NewConnection(_))),
            "HTTP/2 and gRPC keep their connections"
        );
        Load::Requests { body: bytes, shape }
    };
    ensure!(words.next().is_none(), "something follows");
    ensure!(
        !opt_out || (wire == Wire::Tcp && !mtls),
        "optout is for tcp without mtls"
    );
    Ok(Row {
        wire,
        mtls,
        opt_out,
        load,
    })
}

impl FromStr for Shape {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (kind, count) = text.split_at(
            text.find(|c: char| c.is_ascii_digit())
                .unwrap_or(text.len()),
        );
        let (count, rate) = match count.split_once('x') {
            Some((count, rate)) => (count, Some(rate.parse().context("a rate")?)),
            None => (count, None),
        };
        let count = match count {
            "" => None,
            digits => Some(digits.parse::<usize>().context("a number of connections")?),
        };
        ensure!(
            count.is_none_or(|count| (1..=1024).contains(&count)),
            "1 to 1024 connections"
        );
        ensure!(
            rate.is_none_or(|rate| (1..=1_000_000).contains(&rate)),
            "1 to 1,000,000 requests a second"
        );
        ensure!(rate.is_none() || kind == "open", "only open has a rate");
        Ok(match (kind, count) {
            ("closed", Some(count)) => Self::Closed(count),
            ("max", Some(count)) => Self::Max(count),
            ("open", Some(connections)) => Self::Open {
                connections,
                rate: rate.unwrap_or(RATE),
            },
            ("newconn", count) => Self::NewConnection(count.unwrap_or(NEW_CONNECTIONS)),
            _ => bail!("a shape is closed, max or open with a number of connections, or newconn"),
        })
    }
}

impl FromStr for Bytes {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unit = |end, factor| Some((text.strip_suffix(end)?, factor));
        let (digits, factor) = unit('b', 1)
            .or_else(|| unit('k', 1024))
            .or_else(|| unit('m', 1024 * 1024))
            .context("a size ends with b, k or m")?;
        let number: usize = digits.parse().context("a size")?;
        ensure!(
            (1..=1024).contains(&number),
            "a size is 1 to 1024 of its unit"
        );
        Ok(Self(number * factor))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wire = match self.wire {
            Wire::Tcp => "tcp",
            Wire::Http => "http",
            Wire::H2 => "h2",
            Wire::Grpc => "grpc",
        };
        let mtls = if self.mtls { "-mtls" } else { "" };
        let opt_out = if self.opt_out { "-optout" } else { "" };
        match self.load {
            Load::Requests { body, shape } => write!(f, "{wire}{mtls}{opt_out}-{body}-{shape}"),
            Load::Stream { write } => write!(f, "{wire}{mtls}{opt_out}-stream-{write}"),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(count) => write!(f, "closed{count}"),
            Self::Max(count) => write!(f, "max{count}"),
            Self::Open { connections, rate } if *rate == RATE => write!(f, "open{connections}"),
            Self::Open { connections, rate } => write!(f, "open{connections}x{rate}"),
            Self::NewConnection(count) if *count == NEW_CONNECTIONS => write!(f, "newconn"),
            Self::NewConnection(count) => write!(f, "newconn{count}"),
        }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MEBIBYTE: usize = 1024 * 1024;
        match self.0 {
            bytes if bytes % MEBIBYTE == 0 => write!(f, "{}m", bytes / MEBIBYTE),
            bytes if bytes % 1024 == 0 => write!(f, "{}k", bytes / 1024),
            bytes => write!(f, "{bytes}b"),
        }
    }
}

impl Row {
    /// What is compared first: how long one takes, or how many there are.
    pub fn measures(&self) -> Measures {
        match self.load {
            Load::Stream { .. } => Measures::Bytes,
            Load::Requests { shape, .. } => match shape {
                Shape::Closed(_) | Shape::Open { .. } => Measures::Latency,
                Shape::Max(_) => Measures::Requests,
                Shape::NewConnection(1) => Measures::Latency,
                Shape::NewConnection(_) => Measures::Requests,
            },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measures {
    Latency,
    Requests,
    Bytes,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_says_all_and_is_said_again() {
        for name in [
            "tcp-1k-closed1",
            "tcp-1k-open16",
            "http-mtls-1k-open16x5000",
            "h2-16k-max32",
            "grpc-mtls-64b-max32",
            "tcp-mtls-1k-newconn",
            "tcp-1k-newconn1",
            "tcp-optout-1k-closed1",
            "tcp-stream-64k",
            "tcp-mtls-stream-64b",
        ] {
            assert_eq!(name.parse::<Row>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn other_names_are_refused_with_an_example() {
        for name in [
            "",
            "udp-1k-closed1",
            "tcp",
            "tcp-1k",
            "tcp-1k-closed",
            "tcp-1k-closed0",
            "tcp-1k-max32x5",
            "http-stream-64k",
            "h2-1k-newconn",
            "tcp-1q-max1",
            "tcp-32m-max1",
            "tcp-1k-max1-more",
            "http-optout-1k-max1",
        ] {
            let error = name.parse::<Row>().unwrap_err().to_string();
            assert!(error.contains("tcp-1k-closed1"), "{name}: {error}");
        }
    }
}
