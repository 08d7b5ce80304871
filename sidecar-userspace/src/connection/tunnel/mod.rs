//! Tunnels: connections of opaque bytes between two sidecars share kept connections with mutual TLS, so that a new one
//! costs neither a TCP nor a TLS handshake.
//!
//! A tunnel carries HTTP/2 under an ALPN protocol of its own, and each connection is one CONNECT stream, as in HBONE. A
//! stream's `:authority` is the endpoint that was dialled. The other side takes it only if that is the address at which
//! the tunnel itself arrived, and else dials nothing: a tunnel leads to the workload's own port, as the connection without
//! a tunnel would, and nowhere else. END_STREAM is the end of a direction, RST_STREAM a reset.
//!
//! # Layout
//!
//! - `client`, connect: a stream on a kept tunnel, or on one that is made; `pool`, the tunnels of a worker
//! - `server`, accept: each stream becomes a connection of its own, with the same steps and a record of its own
//! - `stream`, one connection's bytes
//! - `wire`, what is below HTTP/2; `heart`, whether the other side is still there

mod client;
mod heart;
mod pool;
mod server;
mod stream;
mod wire;

use std::time::Duration;

use super::buffers::Buffers;

pub use self::{pool::Pool, server::serve, stream::TunnelStream};
pub(super) use client::open;

/// Streams of one tunnel at a time; more connections make another tunnel.
const MAX_STREAMS: u32 = 256;
/// What one stream may have under way, each way.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Less would hold up every stream of a tunnel that was made while memory was scarce, and stays.
const LEAST_WINDOW_BYTES: usize = 32 * 1024;
/// And all streams of a tunnel together: each its own window, so that none waits for another's reader.
const TUNNEL_WINDOW_BYTES: u32 = MAX_STREAMS * STREAM_WINDOW_BYTES;
/// What a stream may hold that is not on its way yet.
const SEND_BUFFER_BYTES: usize = 256 * 1024;
/// As much as the relay reads at once.
const MAX_FRAME_BYTES: u32 = 64 * 1024;
/// A request has two short fields.
const MAX_HEAD_BYTES: u32 = 4096;
/// Streams that were reset here and are remembered for a moment, as more of them may be on its way.
const MAX_RESET_STREAMS: usize = 1024;
/// Frames for streams that are not even remembered. HTTP/2 never forgets one, and a tunnel lives long.
const MAX_STRAY_FRAMES: usize = 16 * 1024;
/// The other side has this long to answer a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Then connections go to a new tunnel, whose handshake looks at the certificates again.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// [`STREAM_WINDOW_BYTES`], or less where the worker's memory is scarce: what a stream has under way waits here if its
/// receiver does not keep up.
fn stream_window_bytes(buffers: &Buffers) -> u32 {
    let granted = buffers.grant(STREAM_WINDOW_BYTES as usize);
    u32::try_from(granted.max(LEAST_WINDOW_BYTES)).unwrap_or(STREAM_WINDOW_BYTES)
}

/// Carries the port of the client itself; its address is that of the tunnel's other end.
const CLIENT_PORT: http::HeaderName = http::HeaderName::from_static("sidecar-client-port");
