//! What the steps read: one immutable snapshot, whatever source it was compiled from.
//!
//! A connection takes an `Arc<Snapshot>` when it is accepted and keeps it to its end; a reload swaps the
//! whole snapshot and touches no connection.

pub mod access_log;
pub mod authorization;
pub mod cgroup;
pub mod cidr;
pub mod egress;
mod index;
mod level;
pub mod route;
pub mod service;
pub mod snapshot;
pub mod steering;
pub mod tls;
pub mod workload;

pub use access_log::{AccessLog, AccessLogFormat};
pub use authorization::Authorization;
pub use cidr::{Cidr, UnknownDestination};
pub use egress::{Egress, EgressRule, IpProtocol};
pub use level::Level;
pub use route::{Backend, HostMatch, PathMatch, Route, RouteRule};
pub use service::{Endpoint, EndpointAddress, Protocol, Service, ServicePort};
pub use snapshot::{Lifecycle, Limits, Listeners, Snapshot, Timeouts};
pub use steering::Steering;
pub use tls::{Federated, Identity, IdentitySource, Mtls, Origin, ServiceTls};
pub use workload::{FailRule, Inbound, InboundCapture, InboundPort, Outbound, Redirect, Workload};
