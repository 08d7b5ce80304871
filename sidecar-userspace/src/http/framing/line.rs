//! The rules for single lines of HTTP/1: request line, header field, chunk size. Pure.

use super::Violation;

/// Takes the line up to `end` (the index of its LF) and gives it without CRLF.
pub(super) fn content(line: &[u8]) -> Result<&[u8], Violation> {
    let Some(content) = line.strip_suffix(b"\r\n") else {
        return Err(Violation::BareLf);
    };
    // One pass without a branch in it, which the compiler turns into vector instructions.
    let suspicious = content.iter().fold(false, |seen, &byte| {
        seen | (byte < b' ') & (byte != b'\t') | (byte == 0x7f)
    });
    if suspicious {
        let bare_cr = memchr::memchr(b'\r', content).is_some();
        return Err(if bare_cr {
            Violation::BareCr
        } else {
            Violation::ControlByte
        });
    }
    Ok(content)
}

/// What the request line says that matters for framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RequestLine {
    pub http_10: bool,
    pub connect: bool,
}

pub(super) fn request_line(line: &[u8]) -> Result<RequestLine, Violation> {
    let mut parts = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Violation::RequestLine);
    };
    if !is_token(method) || target.is_empty() || memchr::memchr(b'\t', line).is_some() {
        return Err(Violation::RequestLine);
    }
    let http_10 = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        _ => return Err(Violation::Version),
    };
    Ok(RequestLine {
        http_10,
        connect: method == b"CONNECT",
    })
}

/// Name and value of a field line, the value without the white space around it.
pub(super) fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Violation::Folded);
    }
    let Some((name, value)) = memchr::memchr(b':', line)
        .and_then(|colon| line.split_at_checked(colon))
        .and_then(|(name, rest)| Some((name, rest.split_first()?.1)))
    else {
        return Err(Violation::FieldName);
    };
    if matches!(name.last(), Some(b' ' | b'\t')) {
        return Err(Violation::SpaceBeforeColon);
    }
    if !is_token(name) {
        return Err(Violation::FieldName);
    }
    Ok((name, trim(value)))
}

/// `Content-Length`: digits only, at most 18 of them, which leaves room for sums.
pub(super) fn length(value: &[u8]) -> Result<u64, Violation> {
    if value.is_empty() || value.len() > 18 {
        return Err(Violation::LengthValue);
    }
    value.iter().try_fold(0_u64, |sum, byte| match byte {
        b'0'..=b'9' => Ok(sum * 10 + u64::from(byte - b'0')),
        _ => Err(Violation::LengthValue),
    })
}

/// `Host`: the characters of `uri-host [":" port]`; empty where the target has no authority.
pub(super) fn is_host(value: &[u8]) -> bool {
    value.iter().all(|&byte| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'%' | b'[' | b']' | b':')
            || matches!(
                byte,
                b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b';' | b'='
            )
    })
}

/// Whether a field's comma-separated list has `member` (lower case) in it.
pub(super) fn list_has(value: &[u8], member: &[u8]) -> bool {
    value
        .split(|&byte| byte == b',')
        .any(|item| trim(item).eq_ignore_ascii_case(member))
}

/// A chunk's size line, without CRLF: hexadecimal digits, then extensions.
pub(super) fn chunk_size(line: &[u8]) -> Result<u64, Violation> {
    let digits = line
        .iter()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    let (size, extensions) = line.split_at(digits);
    // 15 digits: no overflow, and far more than anybody sends.
    if size.is_empty() || size.len() > 15 {
        return Err(Violation::ChunkSize);
    }
    match extensions.first() {
        None => {}
        Some(b';') => chunk_extensions(extensions)?,
        Some(_) => return Err(Violation::ChunkSize),
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => byte - b'0',
        _ => (byte | 0x20) - b'a' + 10,
    };
    Ok(size
        .iter()
        .fold(0, |sum, &byte| sum << 4 | u64::from(digit(byte))))
}

/// `*( ";" name [ "=" ( token / quoted-string ) ] )`, white space allowed around names and values.
fn chunk_extensions(mut rest: &[u8]) -> Result<(), Violation> {
    while let Some((b';', after)) = rest.split_first() {
        let (name, after) = split_token(skip_space(after));
        if name.is_empty() {
            return Err(Violation::ChunkExtension);
        }
        rest = skip_space(after);
        if let Some((b'=', after)) = rest.split_first() {
            rest = skip_space(chunk_extension_value(skip_space(after))?);
        }
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(Violation::ChunkExtension)
    }
}

fn chunk_extension_value(value: &[u8]) -> Result<&[u8], Violation> {
    let Some((b'"', mut rest)) = value.split_first() else {
        let (token, rest) = split_token(value);
        return if token.is_empty() {
            Err(Violation::ChunkExtension)
        } else {
            Ok(rest)
        };
    };
    loop {
        match rest {
            [b'"', after @ ..] => return Ok(after),
            [b'\\', _, after @ ..] => rest = after,
            [b'\\'] | [] => return Err(Violation::ChunkExtension),
            [_, after @ ..] => rest = after,
        }
    }
}

fn split_token(bytes: &[u8]) -> (&[u8], &[u8]) {
    bytes.split_at(bytes.iter().take_while(|&&byte| is_tchar(byte)).count())
}

fn skip_space(bytes: &[u8]) -> &[u8] {
    let spaces = bytes.iter().take_while(|byte| matches!(byte, b' ' | b'\t'));
    bytes.split_at(spaces.count()).1
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&byte| is_tchar(byte))
}

/// RFC 9110, 5.6.2.
pub(super) fn is_tchar(byte: u8) -> bool {
    const TABLE: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0;
        while byte < 256 {
            table[byte] = (byte as u8).is_ascii_alphanumeric();
            byte += 1;
        }
        let others = b"!#$%&'*+-.^_`|~";
        let mut at = 0;
        while at < others.len() {
            table[others[at] as usize] = true;
            at += 1;
        }
        table
    };
    TABLE[usize::from(byte)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes() {
        assert_eq!(chunk_size(b"0"), Ok(0));
        assert_eq!(chunk_size(b"1aF"), Ok(0x1af));
        assert_eq!(chunk_size(b"5;name=value;other"), Ok(5));
        assert_eq!(chunk_size(b"5; a = \"b;\\\"c\" ;d"), Ok(5));
        for bad in [
            &b""[..],
            b"+5",
            b"0x5",
            b"5 ",
            b" 5",
            b"5 ;a",
            b"-1",
            b"g",
            b"5,5",
            b"1234567890123456",
        ] {
            assert_eq!(chunk_size(bad), Err(Violation::ChunkSize), "{bad:?}");
        }
        for bad in [
            &b"5;"[..],
            b"5;a=",
            b"5;a=\"b",
            b"5;a b",
            b"5;;a",
            b"5;a=b=c",
        ] {
            assert_eq!(chunk_size(bad), Err(Violation::ChunkExtension), "{bad:?}");
        }
    }

    #[test]
    fn lengths() {
        assert_eq!(length(b"0"), Ok(0));
        assert_eq!(length(b"00012"), Ok(12));
        for bad in [
            &b""[..],
            b"+1",
            b"-1",
            b"1,1",
            b"1 1",
            b"0x1",
            b"1e3",
            b"9999999999999999999",
        ] {
            assert_eq!(length(bad), Err(Violation::LengthValue), "{bad:?}");
        }
    }

    #[test]
    fn fields() {
        assert_eq!(field(b"Host: \t a b \t"), Ok((&b"Host"[..], &b"a b"[..])));
        assert_eq!(field(b"X:"), Ok((&b"X"[..], &b""[..])));
        assert_eq!(field(b"Host : a"), Err(Violation::SpaceBeforeColon));
        assert_eq!(field(b" Host: a"), Err(Violation::Folded));
        assert_eq!(field(b": a"), Err(Violation::FieldName));
        assert_eq!(field(b"a"), Err(Violation::FieldName));
        assert_eq!(field(b"a b: c"), Err(Violation::FieldName));
        assert_eq!(field(b"a\xe4: c"), Err(Violation::FieldName));
    }
}
