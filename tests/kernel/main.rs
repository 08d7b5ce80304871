//! Tests that need root: real programs in the kernel, real sockets, real namespaces.

mod agent;
mod badinput;
mod bench;
mod bulk;
mod cgroups;
mod churn;
mod credit;
mod databases;
mod egress;
mod identities;
mod integrity;
mod isolation;
mod joined;
mod lifecycle;
mod liveness;
mod mesh;
mod mtls;
mod origin;
mod peers;
mod protocols;
mod readers;
mod resets;
mod startup;
mod units;
mod world;
mod wrap;
