//! What sidecar and agent say to each other.
//!
//! A frame is `SCR` and a version, the length of what follows as 32 bits little-endian, and a message in JSON. Within a
//! version messages only gain fields that may be missing, and a kind that one side does not know is passed over, so that
//! sidecars and agents of different releases get along.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::model::Steering;

/// Raised when an older peer would misunderstand; each side refuses another one.
pub const VERSION: u8 = 1;
const MAGIC: [u8; 3] = *b"SCR";
pub const HEADER_BYTES: usize = 8;
/// A pod with every rule that it may have needs some 200 KiB.
pub const MAX_BYTES: usize = 512 * 1024;
/// Descriptors that come with one message: the kernel's own limit is 253.
pub const MAX_DESCRIPTORS: usize = 250;

/// From the sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Request {
    /// Attach for us. With the descriptors of our listeners, in the order of [`Listeners`].
    Enrol(Enrol),
    /// The configuration has changed.
    Reload { steering: Box<Steering> },
    /// Another sidecar serves our pod: we want its listeners.
    TakeOver,
    /// The answer to [`Reply::HandOver`]. With the descriptors, in the order of [`Listeners`].
    Listeners(Listeners),
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enrol {
    /// The release of the sidecar: for the log.
    #[serde(default)]
    pub release: String,
    /// The port of its outbound listener on loopback.
    pub outbound_port: u16,
    pub listeners: Listeners,
    /// These very listeners were enrolled before, by this process: it comes back to an agent that has been away.
    #[serde(default)]
    pub again: bool,
    pub steering: Box<Steering>,
}

/// Listening sockets as they are handed to the agent, and from an old sidecar to a new one: for each worker its outbound
/// ones and its inbound one, then admin, metrics and health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listeners {
    pub workers: usize,
    /// Outbound sockets of each worker.
    pub outbound: usize,
}

impl Listeners {
    /// How many descriptors there must be; `None` if that is out of the question.
    pub fn count(&self) -> Option<usize> {
        let plausible = (1..=256).contains(&self.workers) && (1..=4).contains(&self.outbound);
        let count = self.workers.checked_mul(self.outbound.checked_add(1)?)?;
        let count = count.checked_add(3)?;
        (plausible && count <= MAX_DESCRIPTORS).then_some(count)
    }
}

/// From the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Reply {
    /// Attached: from now on connections are steered.
    Enrolled(Enrolled),
    /// Nothing was attached, and why.
    Refused { reason: String },
    /// The new configuration is in force.
    Reloaded,
    /// The former one stays in force, and why.
    NotReloaded { reason: String },
    /// A new sidecar wants the listeners: answer with [`Request::Listeners`].
    HandOver,
    /// The old sidecar's. With the descriptors.
    Listeners(Listeners),
    /// A new sidecar has the listeners: stop accepting, and end when the connections have.
    Superseded,
    /// Whether the pod has processes beside its sidecar.
    Company { present: bool },
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enrolled {
    #[serde(default)]
    pub release: String,
    /// How far redirect goes, and why no further.
    #[serde(default)]
    pub redirect: String,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum MessageError {
    #[error("the peer does not speak this protocol")]
    Magic,
    #[error("the peer speaks version {0} of the protocol, we speak {VERSION}")]
    Version(u8),
    #[error("a message of {0} bytes is too long: {MAX_BYTES} are taken")]
    TooLong(usize),
    #[error("not understood: {0}")]
    Content(String),
}

/// The whole frame.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, MessageError> {
    let content =
        serde_json::to_vec(message).map_err(|error| MessageError::Content(error.to_string()))?;
    if content.len() > MAX_BYTES {
        return Err(MessageError::TooLong(content.len()));
    }
    let length = u32::try_from(content.len()).map_err(|_| MessageError::TooLong(content.len()))?;
    let mut frame = Vec::with_capacity(HEADER_BYTES + content.len());
    frame.extend_from_slice(&MAGIC);
    frame.push(VERSION);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&content);
    Ok(frame)
}

/// How many bytes follow the header.
pub fn length(header: [u8; HEADER_BYTES]) -> Result<usize, MessageError> {
    let [a, b, c, version, length @ ..] = header;
    if [a, b, c] != MAGIC {
        return Err(MessageError::Magic);
    }
    if version != VERSION {
        return Err(MessageError::Version(version));
    }
    let length = u32::from_le_bytes(length) as usize;
    match length <= MAX_BYTES {
        true => Ok(length),
        false => Err(MessageError::TooLong(length)),
    }
}

pub fn decode<T: DeserializeOwned>(content: &[u8]) -> Result<T, MessageError> {
    serde_json::from_slice(content).map_err(|error| MessageError::Content(error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Snapshot;

    fn header(frame: &[u8]) -> [u8; HEADER_BYTES] {
        frame[..HEADER_BYTES].try_into().unwrap()
    }

    #[test]
    fn what_is_sent_is_what_arrives() {
        let steering = Box::new(Steering::from(&Snapshot::builtin()));
        for request in [
            Request::Enrol(Enrol {
                release: "0.1.0".into(),
                outbound_port: 15001,
                listeners: Listeners {
                    workers: 1,
                    outbound: 2,
                },
                again: true,
                steering: steering.clone(),
            }),
            Request::Reload { steering },
            Request::TakeOver,
            Request::Listeners(Listeners {
                workers: 2,
                outbound: 2,
            }),
        ] {
            let frame = encode(&request).unwrap();
            assert_eq!(length(header(&frame)), Ok(frame.len() - HEADER_BYTES));
            assert_eq!(decode::<Request>(&frame[HEADER_BYTES..]), Ok(request));
        }
    }

    #[test]
    fn what_a_later_release_says_is_passed_over() {
        let later = br#"{"kind":"dance","with":"me"}"#;
        assert_eq!(decode::<Request>(later), Ok(Request::Unknown));
        assert_eq!(decode::<Reply>(later), Ok(Reply::Unknown));
    }

    #[test]
    fn what_is_no_frame_is_refused_before_memory_is_set_aside() {
        let mut frame = encode(&Request::TakeOver).unwrap();
        assert_eq!(length(*b"GET / HT"), Err(MessageError::Magic));
        frame[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(
            length(header(&frame)),
            Err(MessageError::TooLong(u32::MAX as usize))
        );
        frame[3] = 9;
        assert_eq!(length(header(&frame)), Err(MessageError::Version(9)));
    }

    #[test]
    fn a_hand_over_has_a_plausible_number_of_sockets() {
        let count = |workers, outbound| Listeners { workers, outbound }.count();
        assert_eq!(count(2, 2), Some(9));
        assert_eq!(count(2, 4), Some(13));
        for (workers, outbound) in [(0, 1), (1, 0), (1, 5), (200, 2), (usize::MAX, 1)] {
            assert_eq!(count(workers, outbound), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Request>(&bytes);
            if let Some(header) = bytes.first_chunk() {
                let _ = length(*header);
            }
        }
    }
}
