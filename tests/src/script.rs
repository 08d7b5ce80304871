//! What the two ends of a connection do, drawn from one seed: both know both parts without talking about it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    random::Random,
    stream::{Corruption, CorruptionKind, Direction},
};

/// How a connection behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// One of the others, drawn from the seed.
    Any,
    /// Both ends write and read at their own pace.
    Duplex,
    /// Message and answer in turns.
    Turns,
    /// The client writes small messages at once, the server is slow to read: data before the peer is ready.
    Eager,
}

/// One end's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    pub direction: Direction,
    pub steps: Vec<Step>,
    pub sends_bytes: u64,
    pub receives_bytes: u64,
    /// Largest single read.
    pub read_bytes: usize,
    /// Wait before the first read.
    pub read_delay: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Write {
        bytes: usize,
    },
    Pause(Duration),
    /// Go on when so many bytes have arrived in all.
    AwaitReceived {
        bytes: u64,
    },
}

/// The first bytes of a connection, from the client: what the script is drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preamble {
    pub seed: u64,
    pub style: Style,
    /// Most bytes that one direction carries.
    pub limit_bytes: u64,
}

/// Larger single writes exist only in streams of more than 64 of these.
const WRITE_BYTES: u64 = 256 << 10;

impl Preamble {
    pub const BYTES: usize = 32;
    const MAGIC: u64 = 0x7369_6465_6361_7201;

    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let words = [
            Self::MAGIC,
            self.seed,
            self.limit_bytes << 8 | u64::from(self.style.code()),
            self.check(),
        ];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads what [`Preamble::encode`] wrote; anything else is a corruption.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, Corruption> {
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = chunk
                .iter()
                .rev()
                .fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        let [magic, seed, shape, check] = words;
        let preamble = Style::of_code((shape & 0xff) as u8).map(|style| Self {
            seed,
            style,
            limit_bytes: shape >> 8,
        });
        preamble
            .filter(|preamble| magic == Self::MAGIC && preamble.check() == check)
            .ok_or_else(|| Corruption {
                seed,
                direction: Direction::Up,
                offset: 0,
                kind: CorruptionKind::Preamble,
                expected: format!("{:x}", Self::MAGIC),
                found: format!("{words:x?}"),
            })
    }

    /// The parts of the client and of the server.
    pub fn scripts(&self) -> (Script, Script) {
        let random = &mut Random::new(self.seed);
        let style = match (self.style, random.below(20)) {
            (Style::Any, 0..10) => Style::Duplex,
            (Style::Any, 10..17) => Style::Turns,
            (Style::Any, _) => Style::Eager,
            (style, _) => style,
        };
        let (mut up, mut down) = match style {
            Style::Turns => turns(random, self.limit_bytes),
            Style::Eager => eager(random, self.limit_bytes),
            Style::Duplex | Style::Any => (
                pace(random, self.limit_bytes),
                pace(random, self.limit_bytes),
            ),
        };
        let (sent_up, sent_down) = (written(&up), written(&down));
        // Who half-closes first: both at once, or one waits for the end of the other.
        match random.below(3) {
            0 => up.push(Step::AwaitReceived { bytes: sent_down }),
            1 => down.push(Step::AwaitReceived { bytes: sent_up }),
            _ => {}
        }
        let client = script(random, Direction::Up, up, sent_down);
        let mut server = script(random, Direction::Down, down, sent_up);
        if style == Style::Eager {
            server.read_delay = random.pause(Duration::from_millis(20));
        }
        (client, server)
    }

    fn check(&self) -> u64 {
        crate::stream::mix(
            self.seed ^ self.limit_bytes.rotate_left(32) ^ u64::from(self.style.code()),
        )
    }
}

impl Style {
    fn code(self) -> u8 {
        match self {
            Self::Any => 0,
            Self::Duplex => 1,
            Self::Turns => 2,
            Self::Eager => 3,
        }
    }

    fn of_code(code: u8) -> Option<Self> {
        [Self::Any, Self::Duplex, Self::Turns, Self::Eager]
            .into_iter()
            .find(|style| style.code() == code)
    }
}

fn script(
    random: &mut Random,
    direction: Direction,
    steps: Vec<Step>,
    receives_bytes: u64,
) -> Script {
    Script {
        direction,
        sends_bytes: written(&steps),
        steps,
        receives_bytes,
        // Tiny reads of a long stream would test nothing but patience.
        read_bytes: random.size(64 << 10).max(receives_bytes / 256).max(1) as usize,
        read_delay: if random.one_in(8) {
            random.pause(Duration::from_millis(5))
        } else {
            Duration::ZERO
        },
    }
}

fn written(steps: &[Step]) -> u64 {
    steps
        .iter()
        .map(|step| {
            if let Step::Write { bytes } = step {
                *bytes as u64
            } else {
                0
            }
        })
        .sum()
}

/// One direction at its own pace: at most some 64 writes, pauses between some of them.
fn pace(random: &mut Random, limit_bytes: u64) -> Vec<Step> {
    let total = if random.one_in(4) {
        1 + random.below(limit_bytes)
    } else {
        random.size(limit_bytes)
    };
    let mut steps = Vec::new();
    let mut left = total;
    while left > 0 {
        let bytes = random.size(left.min(WRITE_BYTES)).max(total / 64).min(left);
        steps.push(Step::Write {
            bytes: bytes as usize,
        });
        if random.one_in(8) {
            steps.push(Step::Pause(random.pause(Duration::from_millis(5))));
        }
        left -= bytes;
    }
    steps
}

fn turns(random: &mut Random, limit_bytes: u64) -> (Vec<Step>, Vec<Step>) {
    let count = 1 + random.below(64);
    let largest = (limit_bytes / count).clamp(1, 16 << 10);
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let (mut sent_up, mut sent_down) = (0, 0);
    for _ in 0..count {
        for _ in 0..1 + random.below(3) {
            let bytes = random.size(largest.div_ceil(4));
            up.push(Step::Write {
                bytes: bytes as usize,
            });
            sent_up += bytes;
        }
        down.push(Step::AwaitReceived { bytes: sent_up });
        let bytes = random.size(largest);
        down.push(Step::Write {
            bytes: bytes as usize,
        });
        sent_down += bytes;
        up.push(Step::AwaitReceived { bytes: sent_down });
        if random.one_in(16) {
            up.push(Step::Pause(random.pause(Duration::from_millis(2))));
        }
    }
    (up, down)
}

fn eager(random: &mut Random, limit_bytes: u64) -> (Vec<Step>, Vec<Step>) {
    let write = |random: &mut Random| Step::Write {
        bytes: random.size(limit_bytes.min(2048)) as usize,
    };
    let up: Vec<_> = (0..1 + random.below(32)).map(|_| write(random)).collect();
    let down = (0..1 + random.below(8)).map(|_| write(random)).collect();
    (up, down)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn both_ends_draw_the_same_script_within_the_limit() {
        for style in [Style::Any, Style::Duplex, Style::Turns, Style::Eager] {
            for seed in 0..500 {
                let preamble = Preamble {
                    seed,
                    style,
                    limit_bytes: 1 << 20,
                };
                let again = Preamble::decode(&preamble.encode()).unwrap();
                assert_eq!(again, preamble);
                let (client, server) = preamble.scripts();
                assert_eq!((client.clone(), server.clone()), again.scripts());
                assert_eq!(
                    (client.sends_bytes, client.receives_bytes),
                    (server.receives_bytes, server.sends_bytes)
                );
                assert!(
                    (1..=1 << 20).contains(&client.sends_bytes),
                    "{style:?} {seed}: {}",
                    client.sends_bytes
                );
                assert!(client.steps.len() < 300 && server.steps.len() < 300);
            }
        }
    }

    #[test]
    fn a_damaged_preamble_is_refused() {
        let mut bytes = Preamble {
            seed: 1,
            style: Style::Any,
            limit_bytes: 10,
        }
        .encode();
        bytes[9] ^= 1;
        assert_eq!(
            Preamble::decode(&bytes).unwrap_err().kind,
            CorruptionKind::Preamble
        );
    }
}
