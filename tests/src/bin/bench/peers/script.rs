//! Any other proxy, by a script that starts it. The contract:
//!
//! `SCRIPT client FACTS` and `SCRIPT server FACTS` are run beside the two workloads: in their network namespaces, in a control
//! group that holds the proxy alone, with the group id by which the iptables rules know the proxy (1337; it must stay).
//!
//! - It listens on port 15001 of loopback for what the client opens, and on port 15006 of every address for what comes to the
//!   server. `SO_ORIGINAL_DST` says where each connection was to go.
//! - FACTS is a JSON file: `server`, its address; `ports`, each with `number`, `protocol` (`tcp`, `http`, `http2`, `grpc`) and
//!   `mtls`; `identity` with the paths `certificate`, `privateKey` and `trustBundle`; `peer`, the SPIFFE id that the other side
//!   has; `directory`, which it may write to.
//! - It prints `ready` on a line of its own once it listens, and ends on SIGTERM.

use serde_json::{Value, json};
use std::{net::IpAddr, path::Path};

use crate::{identity::Identity, ports::PORTS, settings};

/// What the script is told.
pub fn facts(server: IpAddr, identity: &Identity, peer: &str, directory: &Path) -> Value {
    let ports = PORTS.iter().map(|port| {
        json!({"number": port.number, "protocol": settings::protocol(port.wire), "mtls": port.mtls})
    });
    json!({
        "server": server,
        "ports": ports.collect::<Vec<_>>(),
        "identity": identity.files(),
        "peer": peer,
        "directory": directory,
    })
}
