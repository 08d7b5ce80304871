//! The relay of HTTP messages: HTTP/1.1 and HTTP/2, hyper on both sides.
//!
//! # Layout
//!
//! - `server`, a client's connection from its first byte to its last; `watch`, its clocks and the drain
//! - [`framing`] and `audited`, the strict reading of HTTP/1 in front of hyper's; `wire`, what the connection's
//!   parts tell each other
//! - `relay`, one request up and its response down, with `authorise`, `route`, `headers`, `body` and `expect`
//! - `client` and `pool`, balance and connect for requests
//! - `tunnel`, what follows CONNECT and upgrades
//! - `refusal`, the answers that the proxy makes itself
//! - `exchange`, the record of one request

mod audited;
mod authorise;
mod body;
mod client;
mod exchange;
pub(crate) mod executor;
mod expect;
pub mod framing;
mod headers;
mod pool;
mod refusal;
mod relay;
mod route;
mod server;
mod session;
#[cfg(test)]
mod tests;
mod tunnel;
mod upstream_io;
mod watch;
mod wire;

pub use authorise::{Asked, asks_for};
pub use pool::Pool;
pub use server::serve;
