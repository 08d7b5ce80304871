//! Other proxies on the same topology, behind the same iptables rules.

pub mod envoy;
pub mod script;
