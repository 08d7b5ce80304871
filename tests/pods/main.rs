//! Real pods: podman plays the shipped manifests, from the image that `cargo xtask image` makes. Needs root.

mod archive;
mod cgroups;
mod image;
mod injected;
mod job;
mod mesh;
mod node;
mod shop;

use std::time::Duration;

/// Longer than anything takes, on a machine that has much else to do.
const SOON: Duration = Duration::from_secs(90);
