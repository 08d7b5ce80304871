//! A strict reading of the framing of HTTP/1 requests, put in front of hyper's lenient one.
//!
//! Where two parsers in a row may disagree about the end of a message, one of them can be made to take the
//! rest for another request. RFC 9112 lets a recipient refuse what is ambiguous, and this one does: bare LF
//! and CR, folded lines, white space before a colon, `Content-Length` beside `Transfer-Encoding`, and so on,
//! see [`Violation`]. It follows every message to its end, so that requests on a kept-alive connection, and
//! pipelined ones, are read as strictly as the first.
//!
//! [`Auditor`] is pure: bytes in, verdict out. The same bytes get the same verdict however they are split.

mod head;
mod line;
#[cfg(test)]
mod tests;
mod violation;

pub use violation::Violation;

use head::Section;

/// What one request's head may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub head_bytes: usize,
    pub fields: usize,
}

/// Follows the bytes that one client sends.
#[derive(Debug)]
pub struct Auditor {
    limits: Limits,
    state: State,
    /// What follows the message that is being read.
    after: State,
    /// The head or trailer section that is being read.
    section: Section,
    /// Empty lines before the next request line.
    empty_lines: u8,
}

/// A violation, and the bytes in front of it that may still be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    pub violation: Violation,
    /// Length of what comes before the message, or the part of it, that is refused.
    pub good: usize,
    /// The refused bytes belong to a head, none of which was given out; else to the body of a request
    /// that was.
    pub in_head: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    /// Bytes of the body to come.
    Body(u64),
    ChunkSize,
    /// Bytes of the chunk to come.
    Chunk(u64),
    ChunkEnd,
    Trailers,
    /// After CONNECT or a request to upgrade: HTTP or not, the response will tell.
    Undecided,
    Opaque,
}

/// More before a request line are no leftovers of an old client's POST (RFC 9112, 2.2).
const MAX_EMPTY_LINES: u8 = 4;
/// A longer chunk extension has no honest use.
const MAX_CHUNK_LINE_BYTES: usize = 1024;

impl Auditor {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Head,
            after: State::Head,
            section: Section::default(),
            empty_lines: 0,
        }
    }

    /// Reads on. `bytes` begins with what the last call left over.
    ///
    /// Gives the length of the front of `bytes` that is in order and may be given out. The rest is an
    /// incomplete head, trailer section or line of chunk framing; it must be presented again, with more
    /// bytes after it.
    pub fn audit(&mut self, bytes: &[u8]) -> Result<usize, Refused> {
        let mut good = 0;
        while let Some(rest) = bytes.get(good..).filter(|rest| !rest.is_empty()) {
            let in_head = self.state == State::Head;
            match self.step(rest) {
                Ok(0) => break,
                Ok(taken) => good += taken,
                Err(violation) => {
                    return Err(Refused {
                        violation,
                        good,
                        in_head,
                    });
                }
            }
        }
        Ok(good)
    }

    /// Whether the end of the stream here would cut a head.
    pub fn at_message_start(&self) -> bool {
        self.state == State::Head
    }

    /// Whether bytes wait for [`Self::decide`].
    pub fn is_undecided(&self) -> bool {
        self.state == State::Undecided
    }

    /// The response to CONNECT or to a request to upgrade is known: `opaque` if the protocol changes.
    pub fn decide(&mut self, opaque: bool) {
        if self.after == State::Undecided {
            self.after = if opaque { State::Opaque } else { State::Head };
        }
        if self.state == State::Undecided {
            self.state = self.after;
        }
    }

    /// Not HTTP/1 at all: everything passes.
    pub fn set_opaque(&mut self) {
        self.state = State::Opaque;
    }

    /// One part of a message; 0: more bytes are needed.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        match self.state {
            State::Head => self.head(bytes),
            State::Body(left) => Ok(self.count(bytes, left, State::Body, self.after)),
            State::Chunk(left) => Ok(self.count(bytes, left, State::Chunk, State::ChunkEnd)),
            State::ChunkSize => self.chunk_size(bytes),
            State::ChunkEnd => self.chunk_end(bytes),
            State::Trailers => {
                let taken = self.section.read(bytes, self.limits, true)?;
                if taken > 0 {
                    self.section = Section::default();
                    self.state = self.after;
                }
                Ok(taken)
            }
            State::Undecided => Ok(0),
            State::Opaque => Ok(bytes.len()),
        }
    }

    fn head(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        if !self.section.begun() {
            match bytes {
                [b'\r', b'\n', ..] if self.empty_lines < MAX_EMPTY_LINES => {
                    self.empty_lines += 1;
                    return Ok(2);
                }
                [b'\r'] => return Ok(0),
                [b'\r', b'\n', ..] => return Err(Violation::RequestLine),
                [b'\r', ..] => return Err(Violation::BareCr),
                [b'\n', ..] => return Err(Violation::BareLf),
                // TLS and other protocols fail here and not after a timeout.
                [first, ..] if !line::is_tchar(*first) => return Err(Violation::RequestLine),
                _ => {}
            }
        }
        let taken = self.section.read(bytes, self.limits, false)?;
        if taken > 0 {
            let message = self.section.message()?;
            self.section = Section::default();
            self.empty_lines = 0;
            self.after = if message.may_change_protocol {
                State::Undecided
            } else {
                State::Head
            };
            self.state = match message.body {
                head::Body::Sized(0) => self.after,
                head::Body::Sized(length) => State::Body(length),
                head::Body::Chunked => State::ChunkSize,
            };
        }
        Ok(taken)
    }

    fn count(&mut self, bytes: &[u8], left: u64, more: fn(u64) -> State, then: State) -> usize {
        let here = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.state = match left.checked_sub(here) {
            None | Some(0) => then,
            Some(left) => more(left),
        };
        // The smaller of the two fits.
        usize::try_from(left.min(here)).unwrap_or(bytes.len())
    }

    fn chunk_size(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let Some(end) = memchr::memchr(b'\n', bytes) else {
            return if bytes.len() > MAX_CHUNK_LINE_BYTES {
                Err(Violation::ChunkExtension)
            } else {
                Ok(0)
            };
        };
        if end > MAX_CHUNK_LINE_BYTES {
            return Err(Violation::ChunkExtension);
        }
        let (line, _) = bytes.split_at(end + 1);
        self.state = match line::chunk_size(line::content(line)?)? {
            0 => State::Trailers,
            size => State::Chunk(size),
        };
        Ok(line.len())
    }

    fn chunk_end(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        match bytes {
            [b'\r', b'\n', ..] => {
                self.state = State::ChunkSize;
                Ok(2)
            }
            [b'\r'] => Ok(0),
            [b'\n', ..] => Err(Violation::BareLf),
            _ => Err(Violation::ChunkEnd),
        }
    }
}
