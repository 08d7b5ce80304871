//! What changes in the fields of a message that passes: only what belongs to the hop.

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, TE, TRAILER, TRANSFER_ENCODING,
        UPGRADE,
    },
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The two sides of a message's way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hop {
    pub from_http2: bool,
    pub to_http2: bool,
}

/// Removes the fields of the hop that a request came over and sets those of the next (RFC 9110, 7.6.1).
/// `upgrade`: the request asks for another protocol, and that is passed on.
///
/// Forwarding fields (`x-forwarded-for`, `via`, `forwarded`) stay as they are: a sidecar is part of its
/// workload, not a hop that the application should see.
pub(super) fn of_request(headers: &mut HeaderMap, hop: Hop, upgrade: bool) {
    let wants_trailers = headers.contains_key(TE) && list_has(headers, &TE, "trailers");
    remove_listed(headers, upgrade);
    for name in [KEEP_ALIVE, PROXY_CONNECTION, HTTP2_SETTINGS, TE] {
        headers.remove(name);
    }
    // hyper frames the body: for HTTP/1 it keeps `chunked`, which the audit has found to be all there is.
    if hop.to_http2 {
        headers.remove(TRANSFER_ENCODING);
        headers.remove(HOST);
    }
    if upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(UPGRADE);
    }
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        if !hop.to_http2 {
            headers.append(CONNECTION, HeaderValue::from_static("te"));
        }
    }
    if hop.from_http2 && !hop.to_http2 {
        join_cookies(headers);
    }
    if !headers.contains_key(REQUEST_ID) {
        headers.insert(REQUEST_ID, request_id());
    }
}

/// The same for a response. `false`: its framing is ambiguous.
pub(super) fn of_response(headers: &mut HeaderMap, upgrade: bool) -> bool {
    if headers.contains_key(TRANSFER_ENCODING) {
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        let chunked = codings
            .next()
            .is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
        if !chunked || codings.next().is_some() || headers.contains_key(CONTENT_LENGTH) {
            return false;
        }
        headers.remove(TRANSFER_ENCODING);
    }
    remove_listed(headers, upgrade);
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    if upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(UPGRADE);
    }
    true
}

/// Whether an HTTP/1.1 request asks for another protocol. `h2c` is not one: it would be HTTP again, and the
/// sidecar speaks HTTP/2 with those who open with it.
pub(super) fn asks_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
        && list_has(headers, &CONNECTION, "upgrade")
        && !list_has(headers, &UPGRADE, "h2c")
}

/// Whether an HTTP/1.0 client can keep its connection; it wants to be told that it may.
pub(super) fn asks_keep_alive<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_10 && list_has(request.headers(), &CONNECTION, "keep-alive")
}

pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Removes `Connection` and the fields that it names.
fn remove_listed(headers: &mut HeaderMap, upgrade: bool) {
    if !headers.contains_key(CONNECTION) {
        return;
    }
    let listed: Vec<HeaderName> = items(headers, &CONNECTION)
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        .filter(|name| match *name {
            // What frames or routes the message is not the sender's to declare a matter of the hop.
            HOST | CONTENT_LENGTH | TRANSFER_ENCODING | TRAILER => false,
            UPGRADE => !upgrade,
            _ => true,
        })
        .collect();
    headers.remove(CONNECTION);
    for name in listed {
        headers.remove(name);
    }
}

/// HTTP/2 splits cookies for compression; HTTP/1 has one line (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut all = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (all.next(), all.next()) else {
        return;
    };
    let mut joined = first.as_bytes().to_vec();
    for cookie in std::iter::once(second).chain(all) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
        headers.insert(COOKIE, joined);
    }
}

fn list_has(headers: &HeaderMap, name: &HeaderName, member: &str) -> bool {
    items(headers, name).any(|item| item.eq_ignore_ascii_case(member))
}

fn items<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// A random UUID (version 4).
fn request_id() -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let random = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let mut text = [b'-'; 36];
    let places = (0..36).filter(|place| ![8, 13, 18, 23].contains(place));
    for (place, nibble) in places.zip((0..32_u32).rev()) {
        let value = usize::try_from(random >> (4 * nibble) & 0xf).unwrap_or(0);
        if let (Some(byte), Some(digit)) = (text.get_mut::<usize>(place), HEX.get(value)) {
            *byte = *digit;
        }
    }
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTTP1: Hop = Hop {
        from_http2: false,
        to_http2: false,
    };

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        fields.iter().map(pair).collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn fields_of_the_hop_go_and_others_stay() {
        let mut headers = map(&[
            ("host", "a"),
            ("connection", "keep-alive, x-hop, Host"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("x-hop", "1"),
            ("te", "gzip, trailers"),
            ("traceparent", "00-1-2-01"),
            ("x-forwarded-for", "192.0.2.1"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABk"),
            ("x-request-id", "mine"),
        ]);
        of_request(&mut headers, HTTP1, false);
        assert_eq!(
            names(&headers),
            [
                "connection",
                "host",
                "te",
                "traceparent",
                "x-forwarded-for",
                "x-request-id"
            ]
        );
        assert_eq!(headers["te"], "trailers");
        assert_eq!(headers["connection"], "te");
        assert_eq!(headers["x-request-id"], "mine");
    }

    #[test]
    fn an_upgrade_is_passed_on() {
        let mut headers = map(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        assert!(asks_upgrade(&headers));
        of_request(&mut headers, HTTP1, true);
        assert_eq!(headers["connection"], "upgrade");
        assert_eq!(headers["upgrade"], "websocket");
        assert!(!asks_upgrade(&map(&[
            ("connection", "upgrade"),
            ("upgrade", "h2c")
        ])));
        assert!(!asks_upgrade(&map(&[("upgrade", "websocket")])));
    }

    #[test]
    fn cookies_become_one_line_for_http1() {
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]);
        let hop = Hop {
            from_http2: true,
            to_http2: false,
        };
        of_request(&mut headers, hop, false);
        assert_eq!(headers["cookie"], "a=1; b=2; c=3");
        assert_eq!(headers.get_all("cookie").iter().count(), 1);
    }

    #[test]
    fn ambiguous_responses_are_refused() {
        assert!(of_response(
            &mut map(&[("transfer-encoding", "chunked")]),
            false
        ));
        assert!(of_response(&mut map(&[("content-length", "1")]), false));
        let both = [("transfer-encoding", "chunked"), ("content-length", "1")];
        assert!(!of_response(&mut map(&both), false));
        assert!(!of_response(
            &mut map(&[("transfer-encoding", "gzip, chunked")]),
            false
        ));
    }

    #[test]
    fn request_ids_are_random_uuids() {
        let id = request_id();
        let text = id.to_str().unwrap();
        assert_eq!(text.len(), 36);
        assert_eq!(&text[14..15], "4");
        assert!("89ab".contains(&text[19..20]));
        assert!(text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'));
        assert_ne!(id, request_id());
    }
}
