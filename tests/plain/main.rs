//! Tests of the whole that need no root.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod checker;
mod deploy;
mod documents;
mod http;
mod inject;
mod proxy;
mod tls;
