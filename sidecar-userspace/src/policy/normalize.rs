//! Paths and hosts in one spelling, so that what policy looks at is what the application gets.

use std::borrow::Cow;

/// How much is done to a path before it is compared and passed on. The names are Istio's, but for `Strict`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PathNormalization {
    /// Nothing: paths are compared and passed on as they come.
    None,
    /// `/./`, `/../`, `\` for `/`, needless escapes, the case of escapes (RFC 3986, 6.2.2).
    Base,
    /// And `//`.
    MergeSlashes,
    /// And `%2f` and `%5c`, which are taken for slashes.
    DecodeAndMergeSlashes,
    /// As `MergeSlashes`; refuses what applications read in different ways: `%2f`, `%5c`, `;`, escapes of escapes.
    Strict,
}

/// A path that may be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Normalized<'a> {
    /// What is passed on; equal to the request's in what RFC 3986 says.
    pub forward: Cow<'a, str>,
    /// What is compared: see [`canonical`].
    pub compare: Cow<'a, str>,
}

/// Brings `path`, without query, into one spelling.
///
/// # Errors
///
/// Why it cannot be: applications would disagree about what it means.
pub fn path(how: PathNormalization, path: &str) -> Result<Normalized<'_>, &'static str> {
    // `*` of OPTIONS, and CONNECT's nothing.
    if how == PathNormalization::None || !path.starts_with(['/', '\\']) {
        return Ok(Normalized {
            forward: path.into(),
            compare: canonical(path),
        });
    }
    let forward = if is_plain(path) {
        Cow::Borrowed(path)
    } else {
        let decoded = decode(how, path)?;
        Cow::Owned(resolve(how, &decoded))
    };
    let compare = match canonical(&forward) {
        Cow::Borrowed(_) => forward.clone(),
        Cow::Owned(changed) => Cow::Owned(changed),
    };
    Ok(Normalized { forward, compare })
}

/// The common case, in which nothing is to be done.
fn is_plain(path: &str) -> bool {
    let mut before = 0;
    for byte in path.bytes() {
        if matches!(byte, b'%' | b'\\' | b';') || (before == b'/' && matches!(byte, b'.' | b'/')) {
            return false;
        }
        before = byte;
    }
    true
}

/// Escapes: needless ones go, the others are upper case; backslashes become slashes.
fn decode(how: PathNormalization, path: &str) -> Result<String, &'static str> {
    let strict = how == PathNormalization::Strict;
    let decode_slashes = how == PathNormalization::DecodeAndMergeSlashes;
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find(['%', '\\', ';']) {
        let (before, after) = rest.split_at(at);
        decoded.push_str(before);
        let taken = match after.as_bytes() {
            [b'\\', ..] => {
                decoded.push('/');
                1
            }
            [b';', ..] if strict => {
                return Err("; in the path, before which some applications cut");
            }
            [b';', ..] => {
                decoded.push(';');
                1
            }
            [_, high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let byte = value(*high) << 4 | value(*low);
                match byte {
                    0 => return Err("%00 in the path"),
                    b'/' | b'\\' if decode_slashes => decoded.push('/'),
                    b'/' | b'\\' if strict => {
                        return Err("an escaped slash or backslash in the path");
                    }
                    b';' if strict => {
                        return Err("; in the path, before which some applications cut");
                    }
                    _ if is_unreserved(byte) => decoded.push(char::from(byte)),
                    _ => push_escape(&mut decoded, byte),
                }
                3
            }
            _ => return Err("a % in the path that begins no escape"),
        };
        rest = after.get(taken..).unwrap_or_default();
    }
    decoded.push_str(rest);
    // What follows an escaped % may have been escaped itself, so that this shows in the end only.
    let mut escaped = decoded.match_indices("%25");
    if strict && escaped.any(|(at, _)| is_escape(decoded.as_bytes().get(at + 3..))) {
        return Err("an escaped escape in the path");
    }
    Ok(decoded)
}

/// `.` and `..` segments, and empty ones where they are to go.
fn resolve(how: PathNormalization, path: &str) -> String {
    let merge = how != PathNormalization::Base;
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            "" if merge && !last => {}
            segment => kept.push(segment),
        }
    }
    let mut resolved = String::with_capacity(path.len());
    for segment in kept {
        resolved.push('/');
        resolved.push_str(segment);
    }
    // Without merging, what was behind a removed segment may have been all there was.
    if resolved.is_empty() {
        resolved.push('/');
    }
    resolved
}

/// The form in which paths are compared, patterns' as well: what an application sees that decodes once, with escapes
/// only for what a path cannot have plain. So `/a%40b` is `/a@b`, and `/é` is `/%C3%A9`.
pub fn canonical(path: &str) -> Cow<'_, str> {
    if path.bytes().all(is_path_byte) {
        return Cow::Borrowed(path);
    }
    let bytes = path.as_bytes();
    let mut text = String::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escape = bytes.get(at + 1..at + 3).filter(|_| byte == b'%');
        match escape {
            Some(&[high, low]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let byte = value(high) << 4 | value(low);
                if is_path_byte(byte) && byte != b'/' {
                    text.push(char::from(byte));
                } else {
                    push_escape(&mut text, byte);
                }
                at += 3;
            }
            _ if is_path_byte(byte) => {
                text.push(char::from(byte));
                at += 1;
            }
            _ => {
                push_escape(&mut text, byte);
                at += 1;
            }
        }
    }
    Cow::Owned(text)
}

/// A host, as policy and services compare it: lower case, without port and trailing dots. `authority` may be a
/// request's `Host`.
pub fn host(authority: &str) -> Cow<'_, str> {
    let end = match authority.strip_prefix('[') {
        Some(rest) => rest.find(']').map_or(authority.len(), |at| at + 2),
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let host = authority.get(..end).unwrap_or(authority);
    let host = host.trim_end_matches('.');
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

fn is_escape(bytes: Option<&[u8]>) -> bool {
    matches!(bytes, Some([high, low, ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit())
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986's `pchar`, and the slash.
fn is_path_byte(byte: u8) -> bool {
    is_unreserved(byte) || b"!$&'()*+,;=:@/".contains(&byte)
}

fn value(hex: u8) -> u8 {
    match hex {
        b'0'..=b'9' => hex - b'0',
        _ => (hex | 0x20).wrapping_sub(b'a').wrapping_add(10),
    }
}

fn push_escape(text: &mut String, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |nibble: u8| {
        HEX.get(usize::from(nibble))
            .map_or('0', |&digit| char::from(digit))
    };
    text.push('%');
    text.push(digit(byte >> 4));
    text.push(digit(byte & 15));
}
