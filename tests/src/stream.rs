//! Content that knows its own place: a keyed stream of bytes in which every eight bytes name their offset.
//!
//! A word of the stream is a bijective mix of key and position. The checker can therefore not only see that a
//! byte is wrong, but turn the wrong bytes back into the position they belong to: lost, overtaken, repeated, or
//! from the other direction.

use std::fmt;

use serde::{Deserialize, Serialize};

const WORD_BYTES: u64 = 8;
/// Positions beyond this (in words) are taken for noise when wrong bytes are located: 2^40 words are 8 TiB.
const PLAUSIBLE_WORDS: u64 = 1 << 40;

/// Which way bytes go: `Up` from the client to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Up,
    Down,
}

impl Direction {
    pub fn opposite(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}

/// The bytes of one direction of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    key: u64,
}

impl Stream {
    pub fn new(seed: u64, direction: Direction) -> Self {
        let tweak = match direction {
            Direction::Up => 0x5570_5570_5570_5570,
            Direction::Down => 0xd0e2_d0e2_d0e2_d0e2,
        };
        Self {
            key: mix(mix(seed) ^ tweak),
        }
    }

    /// Writes into `buffer` the bytes that stand at `offset` and after it.
    pub fn fill(&self, offset: u64, buffer: &mut [u8]) {
        let mut word = offset / WORD_BYTES;
        let skip = (offset % WORD_BYTES) as usize;
        let head = if skip == 0 {
            0
        } else {
            (8 - skip).min(buffer.len())
        };
        let (first, rest) = buffer.split_at_mut(head);
        if head > 0 {
            first.copy_from_slice(&self.word(word)[skip..skip + head]);
            word += 1;
        }
        let mut chunks = rest.chunks_exact_mut(8);
        for chunk in &mut chunks {
            chunk.copy_from_slice(&self.word(word));
            word += 1;
        }
        let last = chunks.into_remainder();
        let length = last.len();
        last.copy_from_slice(&self.word(word)[..length]);
    }

    /// The position within `found` of the first byte that does not stand at `offset` in the stream.
    pub fn first_difference(&self, offset: u64, found: &[u8]) -> Option<usize> {
        let mut expected = [0_u8; 4096];
        for (index, chunk) in found.chunks(expected.len()).enumerate() {
            let start = index * expected.len();
            let expected = &mut expected[..chunk.len()];
            self.fill(offset + start as u64, expected);
            if expected != chunk {
                let within = expected.iter().zip(chunk).position(|(a, b)| a != b);
                return within.map(|within| start + within);
            }
        }
        None
    }

    /// Where in this stream `found` stands; `None` if it is no part of it, or too short to tell (under 16 bytes).
    pub fn locate(&self, found: &[u8]) -> Option<u64> {
        (0..8_usize).find_map(|skip| {
            let bytes: [u8; 8] = found.get(skip..skip + 8)?.try_into().ok()?;
            let word = unmix(u64::from_le_bytes(bytes)).wrapping_sub(self.key);
            let start = (word < PLAUSIBLE_WORDS)
                .then(|| (word * WORD_BYTES).checked_sub(skip as u64))??;
            let sample = &found[..found.len().min(64)];
            (sample.len() >= 16 && self.first_difference(start, sample).is_none()).then_some(start)
        })
    }

    fn word(&self, index: u64) -> [u8; 8] {
        mix(self.key.wrapping_add(index)).to_le_bytes()
    }
}

/// The first thing that was wrong with a direction of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Corruption {
    /// Seed of the connection: with it the run can be repeated.
    pub seed: u64,
    pub direction: Direction,
    /// Bytes that had arrived intact before it.
    pub offset: u64,
    pub kind: CorruptionKind,
    /// Hexadecimal, up to 16 bytes.
    pub expected: String,
    pub found: String,
}

/// What the wrong bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CorruptionKind {
    /// They belong further on: the bytes between were lost or overtaken.
    Ahead { belongs_at: u64 },
    /// They have been there already.
    Repeated { belongs_at: u64 },
    /// They come from the other direction of the connection.
    OtherDirection { belongs_at: u64 },
    /// They belong nowhere in this connection.
    Foreign,
    /// The stream ended early.
    Truncated { expected_bytes: u64 },
    /// The stream went on after its end.
    Excess { expected_bytes: u64 },
    /// The connection's preamble was unreadable.
    Preamble,
}

/// Follows one direction of a connection and compares every byte.
#[derive(Debug)]
pub struct Checker {
    seed: u64,
    direction: Direction,
    stream: Stream,
    /// Bytes that have arrived intact.
    offset: u64,
    expected_bytes: u64,
}

impl Checker {
    pub fn new(seed: u64, direction: Direction, expected_bytes: u64) -> Self {
        Self {
            seed,
            direction,
            stream: Stream::new(seed, direction),
            offset: 0,
            expected_bytes,
        }
    }

    pub fn received_bytes(&self) -> u64 {
        self.offset
    }

    pub fn remaining_bytes(&self) -> u64 {
        self.expected_bytes.saturating_sub(self.offset)
    }

    /// Compares the next bytes that arrived.
    pub fn feed(&mut self, found: &[u8]) -> Result<(), Corruption> {
        if let Some(at) = self.stream.first_difference(self.offset, found) {
            self.offset += at as u64;
            let found = &found[at..];
            return Err(self.corruption(self.explain(found), found));
        }
        let room = self.remaining_bytes();
        if found.len() as u64 > room {
            self.offset = self.expected_bytes;
            let excess = &found[room as usize..];
            return Err(self.corruption(
                CorruptionKind::Excess {
                    expected_bytes: self.expected_bytes,
                },
                excess,
            ));
        }
        self.offset += found.len() as u64;
        Ok(())
    }

    /// The stream has ended: everything must have arrived.
    pub fn finish(&self) -> Result<(), Corruption> {
        if self.offset == self.expected_bytes {
            return Ok(());
        }
        Err(self.corruption(
            CorruptionKind::Truncated {
                expected_bytes: self.expected_bytes,
            },
            &[],
        ))
    }

    fn explain(&self, found: &[u8]) -> CorruptionKind {
        match self.stream.locate(found) {
            Some(belongs_at) if belongs_at > self.offset => CorruptionKind::Ahead { belongs_at },
            Some(belongs_at) => CorruptionKind::Repeated { belongs_at },
            None => Stream::new(self.seed, self.direction.opposite())
                .locate(found)
                .map_or(CorruptionKind::Foreign, |belongs_at| {
                    CorruptionKind::OtherDirection { belongs_at }
                }),
        }
    }

    fn corruption(&self, kind: CorruptionKind, found: &[u8]) -> Corruption {
        let mut expected = [0_u8; 16];
        self.stream.fill(self.offset, &mut expected);
        Corruption {
            seed: self.seed,
            direction: self.direction,
            offset: self.offset,
            kind,
            expected: hexadecimal(&expected),
            found: hexadecimal(&found[..found.len().min(16)]),
        }
    }
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seed,
            direction,
            offset,
            kind,
            expected,
            found,
        } = self;
        write!(
            f,
            "connection seed {seed}, {direction:?} offset {offset}: {kind:?}; expected {expected}, found {found}"
        )
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Finaliser of splitmix64 (Steele, Lea, Flood, 2014): a bijection on 64 bits.
pub(crate) fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The inverse of [`mix`]: the multipliers are the inverses modulo 2^64.
fn unmix(word: u64) -> u64 {
    let word = (word ^ (word >> 31) ^ (word >> 62)).wrapping_mul(0x3196_42b2_d24d_8ec3);
    let word = (word ^ (word >> 27) ^ (word >> 54)).wrapping_mul(0x96de_1b17_3f11_9089);
    word ^ (word >> 30) ^ (word >> 60)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn bytes(offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        Stream::new(7, Direction::Up).fill(offset, &mut bytes);
        bytes
    }

    #[test]
    fn mixing_can_be_undone() {
        for word in [0, 1, 42, u64::MAX, 0x0123_4567_89ab_cdef] {
            assert_eq!(unmix(mix(word)), word);
        }
    }

    #[test]
    fn any_cut_of_the_stream_is_the_same_stream() {
        let whole = bytes(0, 1000);
        for (start, end) in [(0, 1), (1, 9), (3, 4), (5, 900), (8, 16), (999, 1000)] {
            assert_eq!(bytes(start as u64, end - start), whole[start..end]);
        }
    }

    #[test]
    fn wrong_bytes_are_located_wherever_they_are_from() {
        let check = |found: &[u8]| {
            let mut checker = Checker::new(7, Direction::Up, 10_000);
            checker.feed(&bytes(0, 1001)).unwrap();
            checker
                .feed(found)
                .map_err(|corruption| (corruption.offset, corruption.kind))
        };
        assert_eq!(check(&bytes(1001, 500)), Ok(()));
        assert_eq!(
            check(&bytes(1500, 500)),
            Err((1001, CorruptionKind::Ahead { belongs_at: 1500 }))
        );
        assert_eq!(
            check(&bytes(900, 500)),
            Err((1001, CorruptionKind::Repeated { belongs_at: 900 }))
        );
        let mut down = vec![0; 40];
        Stream::new(7, Direction::Down).fill(123, &mut down);
        assert_eq!(
            check(&down),
            Err((1001, CorruptionKind::OtherDirection { belongs_at: 123 }))
        );
        assert_eq!(check(&[0; 40]), Err((1001, CorruptionKind::Foreign)));
        assert_eq!(
            check(&bytes(1001, 9000)),
            Err((
                10_000,
                CorruptionKind::Excess {
                    expected_bytes: 10_000
                }
            ))
        );
    }

    #[test]
    fn an_early_end_is_a_truncation() {
        let mut checker = Checker::new(7, Direction::Up, 100);
        checker.feed(&bytes(0, 99)).unwrap();
        assert_eq!(
            checker.finish().unwrap_err().kind,
            CorruptionKind::Truncated {
                expected_bytes: 100
            }
        );
        checker.feed(&bytes(99, 1)).unwrap();
        checker.finish().unwrap();
    }
}
