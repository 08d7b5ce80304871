//! Detect: HTTP or opaque bytes, without keeping anyone waiting who speaks first.
//!
//! Dialling and listening to the client start at once. The client's first bytes decide, or the destination's if
//! they come first: then the protocol is not HTTP. What was found is remembered per destination, so that a
//! known one costs nothing: for HTTP the dial waits a moment for the request (which may go elsewhere, or find a
//! pooled connection), for a server that speaks first there is nothing to wait for.

mod learned;
mod race;
mod sniff;

use std::time::Duration;

use bytes::{Bytes, BytesMut};

pub use self::learned::{Known, Learned};
use self::{
    race::{Found, SNIFF_BYTES, race, read_more},
    sniff::{Sniffed, sniff},
};
use super::{
    ConnectionContext, Unserved,
    connect::{self, ConnectError, Upstream},
    route::Target,
};

/// What the connection turned out to be. `prefix` is what the client has said so far.
#[derive(Debug)]
pub enum Detected {
    /// Opaque bytes, and the destination that they go to.
    Tcp { prefix: Bytes, upstream: Upstream },
    /// HTTP; the destination if it was reached meanwhile.
    Http {
        prefix: Bytes,
        upstream: Option<Upstream>,
    },
}

/// Whether the client speaks HTTP, and what it said; `None` if it does not, or not within `patience`. For connections that may carry nothing else: the destination is not asked.
pub async fn asks_http(
    client: &mut Unserved,
    context: &ConnectionContext,
    patience: Duration,
) -> Result<Option<Bytes>, ConnectError> {
    let client = client
        .transport()
        .map_err(|error| ConnectError::client(&error))?;
    let mut said = BytesMut::new();
    let listen = async {
        loop {
            let read = read_more(client, &mut said, &context.worker.buffers).await;
            match read.map_err(|error| ConnectError::client(&error))? {
                0 => return Ok::<_, ConnectError>(false),
                _ => match sniff(&said, SNIFF_BYTES) {
                    Sniffed::Http => return Ok(true),
                    Sniffed::Tcp => return Ok(false),
                    Sniffed::Incomplete => {}
                },
            }
        }
    };
    let http = tokio::time::timeout(patience, listen).await;
    Ok(http.unwrap_or(Ok(false))?.then(|| said.freeze()))
}

/// Finds out what the client speaks. Errors are those of dialling, or [`super::Reason::ClientReset`].
pub async fn detect(
    client: &mut Unserved,
    target: &Target,
    context: &ConnectionContext,
) -> Result<Detected, ConnectError> {
    let client = client
        .transport()
        .map_err(|error| ConnectError::client(&error))?;
    let (worker, direction) = (&context.worker, context.direction);
    let known = context
        .original
        .and_then(|original| worker.learned.get(direction, original));
    if known == Some(Known::ServerFirst) {
        worker.recorder.detected(direction, "known_server_first");
        let upstream = connect::connect(context, target).await?;
        return Ok(Detected::Tcp {
            prefix: Bytes::new(),
            upstream,
        });
    }
    let wait = known == Some(Known::Http);
    let dial = connect::connect(context, target);
    let (found, detected) = race(client, wait, dial, &worker.buffers).await?;
    worker.recorder.detected(direction, found.name());
    let learned = match found {
        Found::Http => Some(Known::Http),
        Found::ServerFirst => Some(Known::ServerFirst),
        Found::ClientFirst | Found::Incomplete => None,
        // Says nothing about the next connection.
        Found::Ended => known,
    };
    if let Some(original) = context.original
        && learned != known
    {
        worker.learned.put(direction, original, learned);
    }
    Ok(detected)
}
