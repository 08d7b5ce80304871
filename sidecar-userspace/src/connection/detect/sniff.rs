//! What a side's first bytes say about the protocol. Pure.

/// HTTP/2's client preface (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Methods by which a request line may begin: RFC 9110, PATCH, and WebDAV's.
const METHODS: &[&str] = &[
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "CONNECT",
    "OPTIONS",
    "TRACE",
    "PATCH",
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
    "REPORT",
    "SEARCH",
    "MKCALENDAR",
    "PURGE",
];

/// What the client's first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sniffed {
    Http,
    Tcp,
    /// The beginning of an HTTP request, or of something else.
    Incomplete,
}

/// What the server's first bytes are, before the client said anything decisive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerSaid {
    /// It ended, or answers HTTP without a request (such as 408 on an idle connection): no reason to take the
    /// next client's requests for opaque bytes.
    Nothing,
    /// HTTP/2's SETTINGS, which a server may send without waiting for the client.
    Http2Settings,
    /// A protocol in which the server speaks first.
    Greeting,
}

/// Judges what the client has said. A request line must end in an HTTP version, so that the text protocols
/// which share HTTP's verbs (an inline `GET key` of Redis) stay opaque; one that has not ended after
/// `max_bytes` counts by its method.
pub fn sniff(said: &[u8], max_bytes: usize) -> Sniffed {
    if said.starts_with(PREFACE) {
        return Sniffed::Http;
    }
    if PREFACE.starts_with(said) {
        return Sniffed::Incomplete;
    }
    let Some(space) = said.iter().position(|byte| *byte == b' ') else {
        let may_be = METHODS
            .iter()
            .any(|method| method.as_bytes().starts_with(said));
        return if may_be {
            Sniffed::Incomplete
        } else {
            Sniffed::Tcp
        };
    };
    let (method, rest) = said.split_at(space);
    if !METHODS.iter().any(|known| known.as_bytes() == method) {
        return Sniffed::Tcp;
    }
    match rest.iter().position(|byte| *byte == b'\n') {
        Some(end) => {
            let line = rest.get(..end).unwrap_or_default();
            if line.windows(6).any(|part| part == b" HTTP/") {
                Sniffed::Http
            } else {
                Sniffed::Tcp
            }
        }
        None if said.len() >= max_bytes => Sniffed::Http,
        None => Sniffed::Incomplete,
    }
}

/// Judges what the server has said; empty: it ended.
pub fn sniff_server(said: &[u8]) -> ServerSaid {
    // Frame header of RFC 9113, 4.1: length of 24 bits, type 4, no flags, stream 0.
    let settings = |said: &[u8]| match said {
        [0, _, _, rest @ ..] => [4, 0, 0, 0, 0, 0].starts_with(rest.get(..6).unwrap_or(rest)),
        _ => false,
    };
    match said {
        [] => ServerSaid::Nothing,
        said if said.starts_with(b"HTTP/") => ServerSaid::Nothing,
        said if settings(said) && said.len() > 3 => ServerSaid::Http2Settings,
        _ => ServerSaid::Greeting,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients() {
        let http: &[&[u8]] = &[
            b"GET / HTTP/1.1\r\n",
            b"POST http://a/b HTTP/1.0\n",
            b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
            PREFACE,
        ];
        for said in http {
            assert_eq!(sniff(said, 8192), Sniffed::Http, "{said:?}");
            for cut in 0..10 {
                assert_eq!(
                    sniff(&said[..cut], 8192),
                    Sniffed::Incomplete,
                    "{said:?} cut at {cut}"
                );
            }
        }
        let tcp: &[&[u8]] = &[
            b"\x16\x03\x01\x02\x00",
            b"*1\r\n$4\r\nPING\r\n",
            b"GET key\r\n",
            b"get key\r\n",
            b"PING\r\n",
            b"PRI * HTTP/3.0\r\n\r\n",
            b"GETS / HTTP/1.1\r\n",
            b"\0\0\0\x08\x04\xd2\x16\x2f",
        ];
        for said in tcp {
            assert_eq!(sniff(said, 8192), Sniffed::Tcp, "{said:?}");
        }
        assert_eq!(
            sniff(&[b"GET /".as_slice(), &[b'x'; 100]].concat(), 100),
            Sniffed::Http
        );
    }

    #[test]
    fn servers() {
        assert_eq!(sniff_server(b""), ServerSaid::Nothing);
        assert_eq!(
            sniff_server(b"HTTP/1.1 408 Request Timeout\r\n"),
            ServerSaid::Nothing
        );
        assert_eq!(
            sniff_server(b"\0\0\x12\x04\0\0\0\0\0\0\x03"),
            ServerSaid::Http2Settings
        );
        assert_eq!(
            sniff_server(b"220 mail.example.org ESMTP\r\n"),
            ServerSaid::Greeting
        );
        assert_eq!(sniff_server(b"J\0\0\0\x0a5.5.5"), ServerSaid::Greeting);
        assert_eq!(sniff_server(b"\0"), ServerSaid::Greeting);
    }
}
