//! Table, reference and property tests of the auditor.

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    head_bytes: 512,
    fields: 8,
};

/// Feeds `bytes` in the pieces that `cuts` makes; gives the bytes given out and the violation, if any.
fn feed(bytes: &[u8], cuts: &[usize]) -> (usize, Option<Violation>) {
    let mut auditor = Auditor::new(LIMITS);
    let mut given = 0;
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    for end in ends {
        match auditor.audit(&bytes[given..end.max(given)]) {
            Ok(good) => given += good,
            Err(refused) => return (given + refused.good, Some(refused.violation)),
        }
    }
    (given, None)
}

fn verdict(request: &str) -> Option<Violation> {
    feed(request.as_bytes(), &[]).1
}

#[test]
fn each_malformed_shape_is_refused() {
    use Violation as V;
    let long = format!(
        "GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
        "y".repeat(512)
    );
    let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(8));
    let chunked = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let table = [
        ("GET / HTTP/1.1\nhost: a\n\n", V::BareLf),
        ("GET / HTTP/1.1\r\nhost: a\n\r\n", V::BareLf),
        ("\nGET / HTTP/1.1\r\n", V::BareLf),
        ("GET / HTTP/1.1\r\nhost: a\rb\r\n\r\n", V::BareCr),
        ("GET / HTTP/1.1\r\nhost: a\r\r\n\r\n", V::BareCr),
        ("GET / HTTP/1.1\r\nx: a\0b\r\n", V::ControlByte),
        ("GET / HTTP/1.1\r\nx\0: b\r\n", V::ControlByte),
        ("GET  / HTTP/1.1\r\n", V::RequestLine),
        ("GET / a HTTP/1.1\r\n", V::RequestLine),
        ("GET /\r\n", V::RequestLine),
        ("GET\t/ HTTP/1.1\r\n", V::RequestLine),
        ("\x16\x03\x01", V::RequestLine),
        ("GET / HTTP/2.0\r\n", V::Version),
        ("GET / http/1.1\r\n", V::Version),
        ("GET / HTTP/1.1\r\nx: a\r\n b\r\n", V::Folded),
        ("GET / HTTP/1.1\r\n host: a\r\n", V::Folded),
        ("GET / HTTP/1.1\r\nhost : a\r\n", V::SpaceBeforeColon),
        ("GET / HTTP/1.1\r\nhost\r\n", V::FieldName),
        ("GET / HTTP/1.1\r\n: a\r\n", V::FieldName),
        ("GET / HTTP/1.1\r\n\r\n", V::HostMissing),
        ("GET / HTTP/1.1\r\nhost: a\r\nHost: a\r\n", V::HostRepeated),
        ("GET / HTTP/1.1\r\nhost: a/b\r\n", V::HostValue),
        ("GET / HTTP/1.1\r\nhost: a, b\r\n", V::HostValue),
        ("POST / HTTP/1.1\r\ncontent-length: +5\r\n", V::LengthValue),
        (
            "POST / HTTP/1.1\r\ncontent-length: 5, 5\r\n",
            V::LengthValue,
        ),
        (
            "POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n",
            V::LengthRepeated,
        ),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
            V::LengthAndEncoding,
        ),
        (
            "POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n",
            V::EncodingValue,
        ),
        (
            "POST / HTTP/1.1\r\ntransfer-encoding: xchunked\r\n",
            V::EncodingValue,
        ),
        (
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked;a=b\r\n",
            V::EncodingValue,
        ),
        (
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            V::EncodingRepeated,
        ),
        (
            "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n",
            V::EncodingInHttp10,
        ),
        (&long, V::HeadTooLarge),
        (&many, V::TooManyFields),
    ];
    for (request, violation) in table {
        assert_eq!(verdict(request), Some(violation), "{request:?}");
    }
    let bodies = [
        ("x\r\n", V::ChunkSize),
        ("5\n", V::BareLf),
        ("5 \r\n", V::ChunkSize),
        ("5;a b\r\n", V::ChunkExtension),
        ("1\r\nab\r\n", V::ChunkEnd),
        ("1\r\na\n", V::BareLf),
        ("1\r\na\r0\r\n", V::ChunkEnd),
        ("0\r\nx: a\n\r\n", V::BareLf),
        ("0\r\nhost: a\r\n\r\n", V::TrailerField),
        ("0\r\nContent-Length: 1\r\n\r\n", V::TrailerField),
        ("0\r\n\r\n\0", V::RequestLine),
    ];
    for (body, violation) in bodies {
        assert_eq!(
            verdict(&format!("{chunked}{body}")),
            Some(violation),
            "{body:?}"
        );
    }
}

#[test]
fn requests_before_the_violation_are_given_out() {
    let good = "GET / HTTP/1.1\r\nhost: a\r\n\r\nPOST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc";
    let bad = format!("{good}GET / HTTP/1.1\nhost: a\n\n");
    assert_eq!(
        feed(bad.as_bytes(), &[]),
        (good.len(), Some(Violation::BareLf))
    );
}

#[test]
fn bytes_after_a_request_to_upgrade_wait_for_the_decision() {
    let upgrade = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\r\n";
    let mut bytes = upgrade.to_vec();
    bytes.extend_from_slice(b"\0\0");
    let mut auditor = Auditor::new(LIMITS);
    assert_eq!(auditor.audit(&bytes), Ok(upgrade.len()));
    assert!(auditor.is_undecided());
    auditor.decide(true);
    assert_eq!(auditor.audit(b"\0\0"), Ok(2));

    let mut auditor = Auditor::new(LIMITS);
    assert_eq!(auditor.audit(&bytes), Ok(upgrade.len()));
    auditor.decide(false);
    assert!(auditor.audit(b"\0\0").is_err());
}

/// A request that is in order, and the lengths that a splitter may cut it into.
fn request() -> impl Strategy<Value = String> {
    let fields = prop::collection::vec(("x-[a-z]{1,8}", "[ -~]{0,20}"), 0..4);
    let sized =
        "[ -~\r\n]{0,40}".prop_map(|body| (format!("Content-Length: {}\r\n", body.len()), body));
    let chunked = (
        prop::collection::vec("[ -~\r\n]{1,20}", 0..4),
        prop::sample::select(vec!["", ";a=b", ";a=\"b c\""]),
        prop::sample::select(vec!["", "x-trailer: y\r\n"]),
    )
        .prop_map(|(chunks, extension, trailer)| {
            let chunks: String = chunks
                .iter()
                .map(|chunk| format!("{:x}{extension}\r\n{chunk}\r\n", chunk.len()))
                .collect();
            (
                "Transfer-Encoding: Chunked\r\n".into(),
                format!("{chunks}0\r\n{trailer}\r\n"),
            )
        });
    let none = Just((String::new(), String::new()));
    let body = prop_oneof![none, sized, chunked];
    ("[A-Z]{3,7}", "/[a-z/?=&%0-9]{0,20}", fields, body).prop_map(
        |(method, target, fields, (framing, body))| {
            let fields: String = fields
                .iter()
                .map(|(n, v)| format!("{n}: {v}\r\n"))
                .collect();
            format!(
                "{method} {target} HTTP/1.1\r\nHost: a.example:80\r\n{fields}{framing}\r\n{body}"
            )
        },
    )
}

/// Bytes that look enough like HTTP to reach the deeper states.
fn nearly_http() -> impl Strategy<Value = Vec<u8>> {
    let snippets = vec![
        "GET / HTTP/1.1\r\n",
        "host: a\r\n",
        "\r\n",
        "\n",
        "\r",
        " ",
        "content-length: 3\r\n",
        "transfer-encoding: chunked\r\n",
        "3\r\n",
        "abc",
        "0\r\n",
        "connection: upgrade\r\n",
        "upgrade: x\r\n",
        "\0",
        ";a=b",
        "x : y\r\n",
        "HTTP/1.0",
    ];
    let piece = prop_oneof![
        4 => prop::sample::select(snippets).prop_map(|s| s.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..6),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn a_pipeline_of_good_requests_passes_however_it_is_split(
        requests in prop::collection::vec(request(), 1..4),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let bytes = requests.concat();
        prop_assert_eq!(feed(bytes.as_bytes(), &cuts), (bytes.len(), None));
    }

    #[test]
    fn any_split_gets_the_same_verdict(
        bytes in nearly_http(),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        prop_assert_eq!(feed(&bytes, &cuts), feed(&bytes, &[]));
        let every: Vec<usize> = (0..bytes.len()).collect();
        prop_assert_eq!(feed(&bytes, &every), feed(&bytes, &[]));
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        feed(&bytes, &[7, 99, 1000]);
    }

    /// What passes here, httparse reads as well, and ends the head at the same byte.
    #[test]
    fn httparse_agrees_about_the_heads_that_pass(bytes in nearly_http()) {
        let mut auditor = Auditor::new(LIMITS);
        let first_line = bytes.first().is_some_and(|byte| line::is_tchar(*byte));
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n").filter(|_| first_line) {
            let head = &bytes[..end + 4];
            if auditor.audit(head) == Ok(head.len()) {
                let mut fields = [httparse::EMPTY_HEADER; 16];
                let mut request = httparse::Request::new(&mut fields);
                prop_assert_eq!(request.parse(head), Ok(httparse::Status::Complete(head.len())));
            }
        }
    }
}
