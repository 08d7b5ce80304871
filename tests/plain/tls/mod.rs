//! Mutual TLS between sidecars, with real clients, without root.

pub mod authority;
mod clients;
mod origin;
mod pair;
mod programs;
mod relay;
mod reload;
mod rotation;
mod strangers;
mod testssl;
mod tunnel;
mod tunnel_peers;
mod workload_api;
