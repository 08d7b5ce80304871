//! The client's first bytes, the dial, and the destination's first bytes: whichever comes first.

use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Instant, sleep, sleep_until},
};

use super::{
    Detected,
    sniff::{ServerSaid, Sniffed, sniff, sniff_server},
};
use crate::connection::{
    Reason, Transport,
    buffers::Buffers,
    connect::{ConnectError, Upstream},
};

/// For a destination known to speak HTTP: how long the dial waits for the client's first bytes.
const HTTP_HEAD_START: Duration = Duration::from_millis(20);

/// How long the beginning of an HTTP request may stay incomplete until it is taken for something else, counted
/// from when the destination is there: its protocol may have it wait for exactly these bytes.
const INCOMPLETE: Duration = Duration::from_millis(200);

/// Bytes of the client that are looked at.
pub(super) const SNIFF_BYTES: usize = 8 * 1024;

/// What decided, or what there was when nothing more would come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Http,
    ClientFirst,
    ServerFirst,
    /// The client's bytes could have become HTTP and did not.
    Incomplete,
    /// One side ended before anything was decided.
    Ended,
}

impl Found {
    /// The metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::ClientFirst => "client_first",
            Self::ServerFirst => "server_first",
            Self::Incomplete => "incomplete",
            Self::Ended => "ended",
        }
    }
}

/// Runs until it is known what the connection is and, unless that is HTTP, until the destination is reached.
/// `wait`: give the client a head start over the dial.
pub async fn race(
    client: &mut Transport,
    wait: bool,
    dial: impl Future<Output = Result<Upstream, ConnectError>>,
    buffers: &Buffers,
) -> Result<(Found, Detected), ConnectError> {
    let mut dial = pin!(async {
        if wait {
            sleep(HTTP_HEAD_START).await;
        }
        dial.await
    });
    let mut upstream: Option<Upstream> = None;
    let mut said = BytesMut::new();
    let mut incomplete_until: Option<Instant> = None;
    let mut hear_server = true;
    let found = loop {
        tokio::select! {
            biased;
            read = read_more(client, &mut said, buffers) => match read {
                Ok(0) => break Found::Ended,
                Ok(_) => match sniff(&said, SNIFF_BYTES) {
                    Sniffed::Http => break Found::Http,
                    Sniffed::Tcp => break Found::ClientFirst,
                    Sniffed::Incomplete => {}
                },
                Err(error) => return Err(ConnectError::client(&error)),
            },
            dialled = &mut dial, if upstream.is_none() => upstream = Some(dialled?),
            heard = hear(upstream.as_mut()), if upstream.is_some() && hear_server => match heard {
                Ok(ServerSaid::Greeting) => break Found::ServerFirst,
                Ok(ServerSaid::Nothing) => break Found::Ended,
                Ok(ServerSaid::Http2Settings) => hear_server = false,
                Err(error) => return Err(upstream_failed(&error)),
            },
            () = sleep_until(incomplete_until.unwrap_or_else(Instant::now)), if incomplete_until.is_some() => {
                break Found::Incomplete;
            }
        }
        if !said.is_empty() && upstream.is_some() {
            incomplete_until.get_or_insert_with(|| Instant::now() + INCOMPLETE);
        }
    };
    let prefix = said.freeze();
    let detected = match (found, upstream) {
        (Found::Http, upstream) => Detected::Http { prefix, upstream },
        (_, Some(upstream)) => Detected::Tcp { prefix, upstream },
        (_, None) => Detected::Tcp {
            prefix,
            upstream: dial.await?,
        },
    };
    Ok((found, detected))
}

/// Appends what the client has sent to `said`; 0: it ended.
pub(super) async fn read_more(
    client: &mut Transport,
    said: &mut BytesMut,
    buffers: &Buffers,
) -> io::Result<usize> {
    std::future::poll_fn(|cx| {
        let mut buffer = buffers.take(SNIFF_BYTES);
        let mut space = ReadBuf::new(buffer.get_mut(..SNIFF_BYTES).unwrap_or_default());
        let polled = Pin::new(&mut *client).poll_read(cx, &mut space);
        let read = space.filled().len();
        said.extend_from_slice(space.filled());
        buffers.give(buffer);
        polled.map_ok(|()| read)
    })
    .await
}

/// What the destination says first, without taking it from the socket.
async fn hear(upstream: Option<&mut Upstream>) -> io::Result<ServerSaid> {
    let Some(upstream) = upstream else {
        return std::future::pending().await;
    };
    let mut start = [0; 9];
    let heard = upstream.stream.peek(&mut start).await?;
    Ok(sniff_server(start.get(..heard).unwrap_or_default()))
}

fn upstream_failed(error: &io::Error) -> ConnectError {
    ConnectError {
        detail: Some(error.to_string()),
        ..Reason::UpstreamReset.into()
    }
}
