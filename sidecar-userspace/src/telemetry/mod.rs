//! What the proxy tells about itself: metrics, the access log, the admin endpoints.

pub mod access_log;
pub mod admin;
mod certs;
mod config_dump;
mod line;
pub mod metrics;
mod tls_metrics;
