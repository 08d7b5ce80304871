//! A head or a trailer section, line by line, and what a head says of its message.

use super::{
    Limits, Violation,
    line::{self, RequestLine},
};

/// Progress in a section that ends with an empty line.
#[derive(Debug, Default)]
pub(super) struct Section {
    /// Where the first line begins that is not yet read.
    line_start: usize,
    /// No LF before this.
    searched: usize,
    request: Option<RequestLine>,
    fields: usize,
    hosts: usize,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    connection_upgrade: bool,
}

/// What follows a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    pub body: Body,
    /// CONNECT, or a request to upgrade.
    pub may_change_protocol: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    Sized(u64),
    Chunked,
}

impl Section {
    /// Whether a line has been read, or searched for its end.
    pub fn begun(&self) -> bool {
        self.searched > 0
    }

    /// Reads the lines of `bytes`, which begins with the section's first byte. Gives the section's length
    /// once it is complete, else 0.
    pub fn read(
        &mut self,
        bytes: &[u8],
        limits: Limits,
        trailers: bool,
    ) -> Result<usize, Violation> {
        loop {
            let unsearched = bytes.get(self.searched..).unwrap_or_default();
            let Some(found) = memchr::memchr(b'\n', unsearched) else {
                self.searched = bytes.len();
                return if bytes.len() > limits.head_bytes {
                    Err(Violation::HeadTooLarge)
                } else {
                    Ok(0)
                };
            };
            let end = self.searched + found + 1;
            if end > limits.head_bytes {
                return Err(Violation::HeadTooLarge);
            }
            let line = bytes.get(self.line_start..end).unwrap_or_default();
            let content = line::content(line)?;
            self.line_start = end;
            self.searched = end;
            if trailers {
                if content.is_empty() {
                    return Ok(end);
                }
                self.trailer(content, limits)?;
            } else if self.request.is_none() {
                self.request = Some(line::request_line(content)?);
            } else if content.is_empty() {
                return Ok(end);
            } else {
                self.field(content, limits)?;
            }
        }
    }

    /// What the complete head means for the bytes that follow it (RFC 9112, 6.3).
    pub fn message(&self) -> Result<Message, Violation> {
        let request = self.request.ok_or(Violation::RequestLine)?;
        if self.hosts == 0 && !request.http_10 {
            return Err(Violation::HostMissing);
        }
        if self.chunked && self.length.is_some() {
            return Err(Violation::LengthAndEncoding);
        }
        if self.chunked && request.http_10 {
            return Err(Violation::EncodingInHttp10);
        }
        let upgrade = self.upgrade && self.connection_upgrade && !request.http_10;
        Ok(Message {
            body: if self.chunked {
                Body::Chunked
            } else {
                Body::Sized(self.length.unwrap_or(0))
            },
            may_change_protocol: request.connect || upgrade,
        })
    }

    fn field(&mut self, line: &[u8], limits: Limits) -> Result<(), Violation> {
        self.fields += 1;
        if self.fields > limits.fields {
            return Err(Violation::TooManyFields);
        }
        let (name, value) = line::field(line)?;
        // The length tells most fields apart without a comparison.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                self.hosts += 1;
                if self.hosts > 1 {
                    return Err(Violation::HostRepeated);
                }
                if !line::is_host(value) {
                    return Err(Violation::HostValue);
                }
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
            10 if name.eq_ignore_ascii_case(b"connection") => {
                self.connection_upgrade |= line::list_has(value, b"upgrade");
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = line::length(value)?;
                if self.length.replace(length).is_some() {
                    return Err(Violation::LengthRepeated);
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Violation::EncodingValue);
                }
                if self.chunked {
                    return Err(Violation::EncodingRepeated);
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn trailer(&mut self, line: &[u8], limits: Limits) -> Result<(), Violation> {
        self.fields += 1;
        if self.fields > limits.fields {
            return Err(Violation::TooManyFields);
        }
        let (name, _) = line::field(line)?;
        // RFC 9110, 6.5.1: nothing that frames or routes.
        let forbidden: [&[u8]; 4] = [b"content-length", b"transfer-encoding", b"host", b"trailer"];
        if forbidden.iter().any(|f| name.eq_ignore_ascii_case(f)) {
            return Err(Violation::TrailerField);
        }
        Ok(())
    }
}
