//! As much of HTTP/1.1's responses as a load generator has to read: where one ends, and that it is the one expected.

use anyhow::{Context, Result, bail, ensure};

/// Longer heads than this are no answer to what is asked here.
const HEAD_LIMIT: usize = 16 * 1024;

/// The state of one response.
#[derive(Debug, Default)]
pub struct Response {
    /// What has come of the head, while it is not whole.
    head: Vec<u8>,
    /// Bytes of the body that are still to come; `None` before the head is whole.
    left: Option<u64>,
    pub body_bytes: u64,
}

impl Response {
    /// Takes what was read; true if the response is complete with it.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<bool> {
        let left = match self.left {
            Some(left) => left
                .checked_sub(bytes.len() as u64)
                .context("more than one response")?,
            None if self.head.is_empty() => match end_of_head(bytes) {
                // The usual case: nothing is copied.
                Some(end) => self.begin(&bytes[..end], bytes.len() - end)?,
                None => return self.keep(bytes),
            },
            None => {
                self.keep(bytes)?;
                let Some(end) = end_of_head(&self.head) else {
                    return Ok(false);
                };
                let head = std::mem::take(&mut self.head);
                self.begin(&head[..end], head.len() - end)?
            }
        };
        self.left = Some(left);
        Ok(left == 0)
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<bool> {
        self.head.extend_from_slice(bytes);
        ensure!(self.head.len() <= HEAD_LIMIT, "a head without an end");
        Ok(false)
    }

    /// What is left of the body, of which `came` bytes came with the head.
    fn begin(&mut self, head: &[u8], came: usize) -> Result<u64> {
        self.body_bytes = content_length(head)?;
        self.body_bytes
            .checked_sub(came as u64)
            .context("more than one response")
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let at = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(at + 4)
}

fn content_length(head: &[u8]) -> Result<u64> {
    let head = std::str::from_utf8(head).context("a head that is not text")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    ensure!(status.starts_with("HTTP/1.1 200"), "answered «{status}»");
    for line in lines {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            return value.trim().parse().context("a Content-Length");
        }
    }
    bail!("a response without Content-Length: {head}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const WHOLE: &[u8] = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 5\r\n\r\nhello";

    #[test]
    fn a_response_ends_where_it_says_however_it_is_cut() {
        assert!(Response::default().feed(WHOLE).unwrap());
        for cut in 1..WHOLE.len() {
            let mut response = Response::default();
            assert!(!response.feed(&WHOLE[..cut]).unwrap(), "{cut}");
            assert!(response.feed(&WHOLE[cut..]).unwrap(), "{cut}");
            assert_eq!(response.body_bytes, 5);
        }
    }

    #[test]
    fn other_answers_are_errors() {
        let error = |bytes: &[u8]| Response::default().feed(bytes).unwrap_err().to_string();
        assert!(error(b"HTTP/1.1 503 No\r\n\r\n").contains("503"));
        assert!(error(&[WHOLE, b"more"].concat()).contains("more than one"));
        assert!(error(b"HTTP/1.1 200 OK\r\n\r\n").contains("without"));
    }
}
