//! An eBPF-accelerated sidecar data plane: the proxy, the loader and the command line.
//!
//! # Layout
//!
//! - [`cli`], the command line; [`command`], its verbs
//! - [`config`], the file, compiled to the model, and its replacement at run time
//! - [`connection`], the eight steps of a connection, from accept to its record
//! - [`csi`], how pods get the directory of its socket
//! - [`endpoint`], what listens beside the connections that are proxied
//! - [`enrol`], how a sidecar without privilege asks the node's agent to attach for it
//! - [`fetch`], one request to somebody else's server
//! - [`http`], the relay of HTTP messages
//! - [`identity`], who a workload is: SPIFFE identities
//! - [`inject`], the sidecar put into pods: offline, and as an admission webhook
//! - [`jwt`], who the user behind a request is
//! - [`kernel`], the loader of the kernel half
//! - [`kubernetes`], what is asked of the API server
//! - [`lifecycle`], from start to end of the process
//! - [`model`], the immutable snapshot that every step reads
//! - [`policy`], whether a connection or request may pass
//! - [`proxy`], the threads that serve connections
//! - [`sys`], what the operating system offers and no crate wraps
//! - [`telemetry`], what the proxy tells about itself
//! - [`mod@tls`], TLS between sidecars

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod cli;
pub mod command;
pub mod config;
pub mod connection;
pub mod csi;
pub mod endpoint;
pub mod enrol;
pub mod fetch;
pub mod http;
pub mod identity;
pub mod inject;
pub mod jwt;
pub mod kernel;
pub mod kubernetes;
pub mod lifecycle;
pub mod model;
pub mod policy;
pub mod proxy;
pub mod sys;
pub mod telemetry;
pub mod tls;
