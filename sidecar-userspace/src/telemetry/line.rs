//! One line of the access log: the fields of a record, as JSON or for people.

use std::{
    fmt::Display,
    io::Write,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::HeaderValue;
use serde::Serialize;

use crate::{
    connection::{ConnectionRecord, RequestRecord},
    identity::SpiffeId,
    tls::Secured,
};

/// What both kinds of line share. `reason` is `ok` or a code of [`crate::connection::Reason`].
#[derive(Serialize)]
struct Common<'a> {
    time: String,
    kind: &'static str,
    direction: &'static str,
    client: SocketAddr,
    /// Whom the client has proved to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    client_identity: Option<&'a str>,
    /// The version of TLS that the client's connection has.
    #[serde(skip_serializing_if = "Option::is_none")]
    client_tls: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<SocketAddr>,
    /// Whom the endpoint has proved to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_identity: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_tls: Option<&'static str>,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    /// Who refused it: a policy's name, or `default` if none matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
    /// Position of the rule in its policy, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<usize>,
    /// AUDIT policies that matched, with their rules.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    audit: Vec<String>,
    flags: &'static str,
    duration_ms: f64,
}

#[derive(Serialize)]
struct ConnectionLine<'a> {
    #[serde(flatten)]
    common: Common<'a>,
    protocol: &'static str,
    client_bytes: u64,
    upstream_bytes: u64,
}

#[derive(Serialize)]
struct RequestLine<'a> {
    #[serde(flatten)]
    common: Common<'a>,
    protocol: &'static str,
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    authority: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    /// 0: no response was sent.
    status: u16,
    request_bytes: u64,
    response_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_byte_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
}

pub fn connection_json(record: &ConnectionRecord, line: &mut Vec<u8>) {
    let value = ConnectionLine {
        common: connection_common(record),
        protocol: record.protocol,
        client_bytes: record.client_bytes,
        upstream_bytes: record.upstream_bytes,
    };
    json(&value, line);
}

pub fn request_json(record: &RequestRecord, line: &mut Vec<u8>) {
    let value = RequestLine {
        common: request_common(record),
        protocol: version(record.version),
        method: record.method.as_str(),
        authority: record
            .authority
            .as_ref()
            .map(|authority| authority.as_str()),
        path: record.path.as_ref().map(|path| path.as_str()),
        status: record.status,
        request_bytes: record.request_bytes,
        response_bytes: record.response_bytes,
        first_byte_ms: record.first_byte.map(milliseconds),
        route: record.route.as_deref(),
        user_agent: record.user_agent.as_ref().map(text),
        request_id: record.request_id.as_ref().map(text),
        traceparent: record.traceparent.as_ref().map(text),
    };
    json(&value, line);
}

/// `[time] direction tcp client -> destination upstream service reason "message: detail" bytes bytes ms`, then who the client and the endpoint are
pub fn connection_text(record: &ConnectionRecord, line: &mut Vec<u8>) {
    let common = connection_common(record);
    let words = words(&common);
    push(
        line,
        format_args!(
            "[{}] {} {} {} -> {} {} {} {} {} {} {} {:.3} {} {}\n",
            common.time,
            common.direction,
            record.protocol,
            common.client,
            or_dash(common.destination),
            or_dash(common.upstream),
            or_dash(common.service),
            common.reason,
            words,
            record.client_bytes,
            record.upstream_bytes,
            common.duration_ms,
            or_dash(common.client_identity),
            or_dash(common.upstream_identity),
        ),
    );
}

/// The fields of Envoy's default format in its order, then ours.
pub fn request_text(record: &RequestRecord, line: &mut Vec<u8>) {
    let common = request_common(record);
    let quoted =
        |value: Option<&HeaderValue>| quote(&value.map(text).unwrap_or_else(|| "-".into()));
    let path = record.path.as_ref().map_or("-", |path| path.as_str());
    push(
        line,
        format_args!(
            "[{}] {} {} {} {} {} {:.3} {} {} {} {} {} {} {} {} {} {} {}\n",
            common.time,
            quote(&format!(
                "{} {} {}",
                record.method,
                path,
                version(record.version)
            )),
            record.status,
            common.flags,
            record.request_bytes,
            record.response_bytes,
            common.duration_ms,
            quoted(record.user_agent.as_ref()),
            quoted(record.request_id.as_ref()),
            quote(
                record
                    .authority
                    .as_ref()
                    .map_or("-", |authority| authority.as_str())
            ),
            or_dash(common.upstream),
            common.direction,
            common.client,
            or_dash(common.service),
            common.reason,
            words(&common),
            or_dash(common.client_identity),
            or_dash(common.upstream_identity),
        ),
    );
}

/// What the two kinds of record have in common by name, and no type of their own.
macro_rules! common {
    ($record:ident, $kind:literal, $time:ident) => {{
        let outcome = $record.outcome();
        let reason = outcome.reason();
        Common {
            time: rfc3339($record.$time),
            kind: $kind,
            direction: $record.direction.name(),
            client: $record.peer,
            client_identity: identity($record.client_tls.as_deref()),
            client_tls: $record.client_tls.as_ref().map(|tls| tls.version),
            destination: $record.destination,
            service: $record.service.as_deref(),
            upstream: $record.upstream,
            upstream_identity: identity($record.upstream_tls.as_deref()),
            upstream_tls: $record.upstream_tls.as_ref().map(|tls| tls.version),
            reason: outcome.code(),
            message: reason.map(|reason| reason.words()),
            detail: $record.detail.as_deref(),
            policy: $record.denied_by.as_ref().map(|rule| &*rule.policy),
            rule: $record.denied_by.as_ref().and_then(|rule| rule.rule),
            audit: $record.audited_by.iter().map(ToString::to_string).collect(),
            flags: reason.map_or("-", |reason| reason.flag()),
            duration_ms: milliseconds($record.started.elapsed()),
        }
    }};
}

fn connection_common(record: &ConnectionRecord) -> Common<'_> {
    common!(record, "connection", accepted_at)
}

fn request_common(record: &RequestRecord) -> Common<'_> {
    common!(record, "request", started_at)
}

fn identity(tls: Option<&Secured>) -> Option<&str> {
    tls?.peer.as_ref().map(SpiffeId::as_str)
}

fn json(value: &impl Serialize, line: &mut Vec<u8>) {
    let start = line.len();
    // Fails for maps with keys that are no strings only; there are none.
    if serde_json::to_writer(&mut *line, value).is_err() {
        line.truncate(start);
        return;
    }
    line.push(b'\n');
}

fn push(line: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    // Writing to memory does not fail.
    let _ = line.write_fmt(arguments);
}

fn words(common: &Common<'_>) -> String {
    let rule = match (common.policy, common.rule) {
        (Some(policy), Some(rule)) => Some(format!("policy {policy} rules[{rule}]")),
        (Some(policy), None) => Some(format!("policy {policy}")),
        (None, _) => None,
    };
    let audit = (!common.audit.is_empty()).then(|| format!("audit {}", common.audit.join(", ")));
    let said = [
        common.message,
        rule.as_deref(),
        common.detail,
        audit.as_deref(),
    ];
    let said: Vec<&str> = said.into_iter().flatten().collect();
    if said.is_empty() {
        return "-".to_owned();
    }
    quote(&said.join(": "))
}

fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// In quotes; what could end them, break the line or steer a terminal is escaped.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            ' '..='~' => quoted.push(character),
            other => quoted.extend(other.escape_default()),
        }
    }
    quoted.push('"');
    quoted
}

/// A header's value: bytes that are not UTF-8 are replaced.
fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

fn version(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_09 => "HTTP/0.9",
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_11 => "HTTP/1.1",
        http::Version::HTTP_2 => "HTTP/2",
        http::Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/?",
    }
}

/// UTC with milliseconds. The calendar is Howard Hinnant's `civil_from_days`.
pub(super) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second_of_day) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second_of_day / 3600,
        second_of_day / 60 % 60,
        second_of_day % 60,
        since.subsec_millis()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let at = |seconds, millis| {
            rfc3339(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(millis))
        };
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_399, 999), "2000-02-28T23:59:59.999Z");
        assert_eq!(at(951_782_400, 0), "2000-02-29T00:00:00.000Z");
        assert_eq!(at(1_798_761_599, 1), "2026-12-31T23:59:59.001Z");
    }

    #[test]
    fn quotes_hold() {
        assert_eq!(
            quote("a\"b\\c\nd\u{1b}[0m\u{e9}"),
            r#""a\"b\\c\nd\u{1b}[0m\u{e9}""#
        );
    }
}
