//! What the proxy, and the agent, tell about themselves: metrics, the access log, the admin endpoints.

pub mod access_log;
pub mod admin;
pub mod agent;
mod certs;
mod config_dump;
mod line;
pub mod metrics;
mod tls_metrics;
