//! TLS and plaintext told apart by a client's first bytes. Pure.

use rustls::server::Acceptor;

use super::Carried;

/// What is looked at of a ClientHello: with several key shares and many names some 2 KiB are usual.
pub const MAX_BYTES: usize = 16 * 1024;

/// What a client's first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// A ClientHello that offers a protocol of ours: a sidecar.
    Mesh,
    /// A ClientHello of somebody else's, or what looks like one and is none.
    OtherTls,
    /// A ClientHello of TLS 1.1 or older.
    Outdated,
    /// Not TLS.
    Plaintext,
    /// The beginning of a ClientHello.
    Incomplete,
}

/// Judges what the client has said so far.
pub fn first(said: &[u8]) -> First {
    // A record of the kind "handshake" of whatever version (RFC 8446, 5.1), with a ClientHello.
    let begins = [Some(0x16), Some(3), None, None, None, Some(1)];
    let fits = said
        .iter()
        .zip(begins)
        .all(|(byte, expected)| expected.is_none_or(|expected| *byte == expected));
    if !fits {
        return First::Plaintext;
    }
    // The version that older clients say, behind the headers of record and message (RFC 5246, 7.4.1.2).
    if matches!(said.get(9..11), Some([3, ..=2])) {
        return First::Outdated;
    }
    let mut acceptor = Acceptor::default();
    let mut rest = said;
    while !rest.is_empty() {
        // Reading from memory fails only where the library takes no more.
        match acceptor.read_tls(&mut rest) {
            Ok(0) | Err(_) => return First::OtherTls,
            Ok(_) => {}
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let ours = hello
                    .alpn()
                    .is_some_and(|mut all| all.any(|alpn| Carried::of_alpn(alpn).is_some()));
                return if ours { First::Mesh } else { First::OtherTls };
            }
            Err(_) => return First::OtherTls,
        }
    }
    if said.len() >= MAX_BYTES {
        First::OtherTls
    } else {
        First::Incomplete
    }
}
