//! The `:authority` of the kubelet's calls, overwritten before HTTP/2 is spoken, which would refuse them for it.
//!
//! The kubelet dials the registration socket by its path and names no authority, so that grpc-go sends the path itself,
//! percent-encoded in newer versions. RFC 3986, 3.2, allows neither in a host, and the server of the `h2` crate resets the
//! stream. Nobody looks at the authority of a Unix socket, so any other value is as good.
//!
//! Only the value's own bytes change, never a length: frames stay as they are, and nothing is remembered between them. HPACK's
//! dynamic table (RFC 7541, 2.3.2) keeps in step, too. The server notes the new value where the client notes the old one; it takes
//! no more room there, since clients use the Huffman code only where that is shorter, so that no entry leaves the server's
//! table before the client's.
//!
//! What is not understood is passed on as it is, for the server to judge.

use std::{io, ops::Range};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What a client's connection begins with (RFC 9113, 3.4), before any frame.
const PREFACE_BYTES: usize = 24;
/// Length, type, flags and stream of a frame.
const FRAME_HEADER_BYTES: usize = 9;
/// As long as a frame may be where the server has not allowed more (RFC 9113, 4.2).
pub const FRAME_BYTES: usize = 16 * 1024;
/// The type of frame that a request begins with. Its fields go on in frames of type CONTINUATION only if they are longer than
/// a frame, and the authority is among the first.
const HEADERS: u8 = 1;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;
/// A stream and a weight.
const PRIORITY_BYTES: usize = 5;
/// The index of `:authority` in HPACK's static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;
/// Set where a string is in the Huffman code.
const HUFFMAN: u8 = 0x80;

/// Passes a client's bytes on until it sends no more; holds one frame at most.
///
/// # Errors
///
/// Of the streams, `UnexpectedEof` also at the regular end; `InvalidData` for a frame longer than allowed.
pub async fn forward(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut preface = [0; PREFACE_BYTES];
    from.read_exact(&mut preface).await?;
    to.write_all(&preface).await?;
    let mut header = [0; FRAME_HEADER_BYTES];
    let mut buffer = vec![0; FRAME_BYTES];
    loop {
        from.read_exact(&mut header).await?;
        let [high, middle, low, kind, flags, ..] = header;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        let payload = buffer.get_mut(..length).ok_or_else(|| {
            let said = format!("a frame of {length} bytes; at most {FRAME_BYTES} are allowed");
            io::Error::new(io::ErrorKind::InvalidData, said)
        })?;
        from.read_exact(payload).await?;
        if kind == HEADERS
            && let Some(fields) = fields(payload, flags)
        {
            overwrite(fields);
        }
        to.write_all(&header).await?;
        to.write_all(payload).await?;
    }
}

/// The fields in the payload of a HEADERS frame (RFC 9113, 6.2).
fn fields(payload: &mut [u8], flags: u8) -> Option<&mut [u8]> {
    let (mut start, mut end) = (0, payload.len());
    if flags & PADDED != 0 {
        start += 1;
        end = end.checked_sub(usize::from(*payload.first()?))?;
    }
    if flags & PRIORITY != 0 {
        start += PRIORITY_BYTES;
    }
    payload.get_mut(start..end)
}

/// Overwrites every value of `:authority` that is there literally.
fn overwrite(fields: &mut [u8]) {
    let mut at = 0;
    while let Some((length_at, value)) = next_authority(fields, &mut at) {
        if let Some(length) = fields.get_mut(length_at) {
            *length &= !HUFFMAN;
        }
        if let Some(value) = fields.get_mut(value) {
            value.fill(b'a');
        }
    }
}

/// The next literal value of `:authority`, and before it where its length is. `at`: where to look on. `None` at the end, and
/// where something is broken off.
fn next_authority(fields: &[u8], at: &mut usize) -> Option<(usize, Range<usize>)> {
    // The representations of RFC 7541, 6.
    loop {
        match fields.get(*at)?.leading_zeros() {
            // From a table, with its value.
            0 => {
                integer(fields, at, 7)?;
            }
            // A table's size.
            2 => {
                integer(fields, at, 5)?;
            }
            // A value, with a name from a table or a literal one.
            literal => {
                let index = integer(fields, at, if literal == 1 { 6 } else { 4 })?;
                if index == 0 {
                    string(fields, at)?;
                }
                let length_at = *at;
                let value = string(fields, at)?;
                if index == AUTHORITY {
                    return Some((length_at, value));
                }
            }
        }
    }
}

/// Where the bytes of a string are (RFC 7541, 5.2).
fn string(fields: &[u8], at: &mut usize) -> Option<Range<usize>> {
    let length = integer(fields, at, 7)?;
    let value = *at..at.checked_add(length)?;
    fields.get(value.clone())?;
    *at = value.end;
    Some(value)
}

/// A number in the last `bits` of a byte and, if they are all set, in those that follow (RFC 7541, 5.1).
fn integer(fields: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let most = (1 << bits) - 1;
    let mut next = || {
        let byte = usize::from(*fields.get(*at)?);
        *at += 1;
        Some(byte)
    };
    let mut value = next()? & most;
    if value < most {
        return Some(value);
    }
    // Four more bytes are enough for more than a frame can hold.
    for shift in [0, 7, 14, 21] {
        let byte = next()?;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::{collection::vec, prelude::*};
    use tokio::{
        io::{join, simplex, sink},
        time::{Duration, timeout},
    };

    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const END: u8 = 0x5;

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    }

    /// A literal of fewer than 127 bytes with a name from the static table, whose first byte is `first`.
    fn literal(first: u8, huffman: u8, value: &[u8]) -> Vec<u8> {
        let length = u8::try_from(value.len()).unwrap() | huffman;
        [&[first, length], value].concat()
    }

    /// What comes out at the other end.
    async fn forwarded(mut sent: &[u8]) -> (Vec<u8>, io::Error) {
        let mut received = Vec::new();
        let end = forward(&mut sent, &mut received).await.unwrap_err();
        (received, end)
    }

    /// The paths of the requests that `h2` takes, until it gives up or has seen all. (It passes over those that come together
    /// with an end, so there is none.)
    async fn taken(received: &[u8]) -> Vec<String> {
        let (reader, mut writer) = simplex(4 * FRAME_BYTES);
        writer.write_all(received).await.unwrap();
        let mut paths = Vec::new();
        let serving = async {
            let mut server = h2::server::handshake(join(reader, sink())).await?;
            while let Some(request) = server.accept().await {
                paths.push(request?.0.uri().path().to_owned());
            }
            Ok::<_, h2::Error>(())
        };
        let _ = timeout(Duration::from_secs(1), serving).await;
        paths
    }

    /// Two calls as a client sends them, the second one with what the first one has left in the table.
    fn calls(first: u8, huffman: u8, authority: &[u8]) -> Vec<u8> {
        let named = literal(first, huffman, authority);
        let request = [&b"\x83\x86"[..], &named, &literal(0x44, 0, b"/GetInfo")].concat();
        let padded = [&b"\x03\0\0\0\0\x10"[..], &request, b"\0\0\0"].concat();
        // The path is the newest entry; the authority is the one before, if it was left there at all.
        let again = [
            &b"\x83\x86\xbe"[..],
            if first == 0x41 { b"\xbf" } else { b"" },
        ]
        .concat();
        let frames = [
            frame(4, 0, 0, b""),
            frame(HEADERS, END | PADDED | PRIORITY, 1, &padded),
            frame(HEADERS, END, 3, &again),
        ];
        [PREFACE, &frames.concat()].concat()
    }

    #[tokio::test(start_paused = true)]
    async fn the_path_of_a_socket_is_taken() {
        for authority in ["%2Fvar%2Flib%2Freg.sock", "/var/lib/reg.sock", "localhost"] {
            let sent = calls(0x41, 0, authority.as_bytes());
            let (received, end) = forwarded(&sent).await;
            assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
            assert_eq!(taken(&received).await, ["/GetInfo", "/GetInfo"]);
            // What all of this is for.
            assert_eq!(taken(&sent).await.len() == 2, authority == "localhost");
        }
    }

    #[tokio::test]
    async fn frames_that_are_too_long_are_not_held() {
        let long = [PREFACE, &frame(0, 0, 1, &vec![0; FRAME_BYTES + 1])].concat();
        let (received, end) = forwarded(&long).await;
        assert_eq!(
            (&*received, end.kind()),
            (PREFACE, io::ErrorKind::InvalidData)
        );
        let longest = [PREFACE, &frame(0, 0, 1, &vec![0; FRAME_BYTES])].concat();
        assert_eq!(forwarded(&longest).await.0, longest);
    }

    #[test]
    fn only_values_of_the_authority_change() {
        let long = [b'x'; 300];
        // A table's size, another field, a literal name, the same with an index, a long value; then one that is broken off.
        let mut fields = [
            &b"\x3f\xe1\x1f\x82\x41\x83%2F\x00\x01n\x02vv\x0f\x2f\x01%\x11\x02::\x01\x7f\xad\x01"[..],
            &long,
            b"\x01\x7f\xad\x01%",
        ]
        .concat();
        overwrite(&mut fields);
        let expected = [
            &b"\x3f\xe1\x1f\x82\x41\x03aaa\x00\x01n\x02vv\x0f\x2f\x01%\x11\x02aa\x01\x7f\xad\x01"[..],
            &[b'a'; 300],
            b"\x01\x7f\xad\x01%",
        ]
        .concat();
        assert_eq!(Bytes::from(fields), Bytes::from(expected));
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        runtime.unwrap().block_on(future)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn any_authority_is_taken(
            first in prop::sample::select(&[0x41, 0x01, 0x11][..]),
            huffman in prop::sample::select(&[0, HUFFMAN][..]),
            authority in vec(any::<u8>(), 1..127),
        ) {
            let paths = run(async {
                let (received, _) = forwarded(&calls(first, huffman, &authority)).await;
                taken(&received).await
            });
            prop_assert_eq!(paths, ["/GetInfo", "/GetInfo"]);
        }

        #[test]
        fn whatever_is_there_keeps_its_length(fields in vec(any::<u8>(), 0..2_000)) {
            let mut once = fields.clone();
            overwrite(&mut once);
            let mut twice = once.clone();
            overwrite(&mut twice);
            prop_assert_eq!(&once, &twice);
            prop_assert_eq!(once.len(), fields.len());
        }

        /// Whatever a client sends comes to an end, in the server as well.
        #[test]
        fn whatever_is_sent_ends(
            raw in vec(any::<u8>(), 0..100),
            frames in vec((0_u8..12, any::<u8>(), 0_u8..4, vec(any::<u8>(), 0..100)), 0..8),
            cut in 0_usize..200,
        ) {
            let frames = frames.iter().flat_map(|(kind, flags, stream, payload)| {
                frame(*kind, *flags, *stream, payload)
            });
            let mut framed = [PREFACE, &frames.collect::<Vec<_>>()].concat();
            framed.truncate(framed.len() - cut.min(framed.len()));
            for sent in [raw.clone(), framed, [PREFACE, &raw].concat()] {
                run(async {
                    let (received, _) = forwarded(&sent).await;
                    prop_assert!(received.len() <= sent.len());
                    taken(&received).await;
                    Ok(())
                })?;
            }
        }
    }
}
