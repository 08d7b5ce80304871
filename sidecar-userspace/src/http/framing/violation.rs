//! What a client can do wrong in the framing of HTTP/1, each with the words that it gets to read.

use std::fmt;

/// A breach of RFC 9112 that two parsers may read in two ways, or a limit passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Violation {
    /// LF that no CR precedes.
    BareLf,
    /// CR that no LF follows.
    BareCr,
    /// NUL or another control character.
    ControlByte,
    RequestLine,
    Version,
    /// A line that begins with white space: obs-fold, or white space before the first field.
    Folded,
    /// White space between a field's name and the colon.
    SpaceBeforeColon,
    FieldName,
    HostMissing,
    HostRepeated,
    HostValue,
    LengthValue,
    LengthRepeated,
    LengthAndEncoding,
    /// A transfer coding other than exactly `chunked`.
    EncodingValue,
    EncodingRepeated,
    EncodingInHttp10,
    ChunkSize,
    ChunkExtension,
    /// A chunk's data is not followed by CRLF.
    ChunkEnd,
    /// A field that must not be in a trailer section.
    TrailerField,
    HeadTooLarge,
    TooManyFields,
    /// The connection ended inside a head.
    Truncated,
    /// The head did not arrive in time.
    Slow,
}

impl Violation {
    /// One clause, for the answer's body and the access log.
    pub fn words(self) -> &'static str {
        match self {
            Self::BareLf => "a line ends in LF without CR",
            Self::BareCr => "CR without LF",
            Self::ControlByte => "a control character in the head",
            Self::RequestLine => "malformed request line",
            Self::Version => "not HTTP/1.0 or HTTP/1.1",
            Self::Folded => "a line of the head begins with white space",
            Self::SpaceBeforeColon => "white space before the colon of a header",
            Self::FieldName => "malformed header name",
            Self::HostMissing => "no Host header",
            Self::HostRepeated => "more than one Host header",
            Self::HostValue => "malformed Host header",
            Self::LengthValue => "malformed Content-Length",
            Self::LengthRepeated => "more than one Content-Length",
            Self::LengthAndEncoding => "both Content-Length and Transfer-Encoding",
            Self::EncodingValue => "a Transfer-Encoding other than chunked",
            Self::EncodingRepeated => "more than one Transfer-Encoding",
            Self::EncodingInHttp10 => "Transfer-Encoding in HTTP/1.0",
            Self::ChunkSize => "malformed chunk size",
            Self::ChunkExtension => "malformed chunk extension",
            Self::ChunkEnd => "a chunk longer than its size",
            Self::TrailerField => "a field that must not be in a trailer section",
            Self::HeadTooLarge => "the head exceeds limits.headerBytes",
            Self::TooManyFields => "the head has more fields than limits.headers",
            Self::Truncated => "the connection ended inside the head",
            Self::Slow => "the head did not arrive within timeouts.requestHead",
        }
    }

    /// The status code that answers it (RFC 9110, RFC 6585).
    pub fn status(self) -> u16 {
        match self {
            Self::HeadTooLarge | Self::TooManyFields => 431,
            Self::Slow => 408,
            Self::Version => 505,
            _ => 400,
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

impl std::error::Error for Violation {}
