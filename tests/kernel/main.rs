//! Tests that need root: real programs in the kernel, real sockets, real namespaces.

mod badinput;
mod cgroups;
mod churn;
mod credit;
mod egress;
mod integrity;
mod isolation;
mod lifecycle;
mod liveness;
mod mtls;
mod origin;
mod peers;
mod protocols;
mod readers;
mod resets;
mod startup;
mod world;
mod wrap;
