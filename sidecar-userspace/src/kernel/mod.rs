//! The loader's side of the kernel half. Only commands that run as root use it; the proxy never does.
//!
//! # Layout
//!
//! - [`btf`], offsets of the running kernel's structures; [`features`], the constants that follow from them
//! - [`pins`], the shared directory on bpffs
//! - [`layout`], which objects share maps; [`upgrade`], our programs in the place of a former agent's
//! - [`load`], the object, its programs and maps; `helpers`, which calls of theirs all supported kernels offer
//! - [`tables`], what is written into the maps
//! - [`census`], whether all of it is gone
//! - [`selftest`], how far redirect may go; [`proof`], what each level of it rests on
//! - [`events`], what it tells at once
//! - [`listening`], where a workload listens; [`held`], who holds which socket; [`egress`], what enforces its rules for destinations
//! - [`exclusion`], cgroups whose processes are left alone; [`adopt`], sockets that were there before; [`record`], counters as metrics
//! - [`links`], programs and what they are attached to; [`workload`], one workload's, from enrolment to leaving
//! - [`attach`], a workload that its own sidecar holds; [`node`], the workloads that the node's agent holds

pub mod adopt;
pub mod attach;
pub mod btf;
pub mod census;
pub mod egress;
pub mod events;
pub mod exclusion;
pub mod features;
pub mod held;
#[cfg(test)]
mod helpers;
pub mod layout;
pub mod links;
pub mod listening;
pub mod load;
pub mod node;
pub mod pins;
pub mod proof;
pub mod record;
pub mod selftest;
pub mod tables;
pub mod upgrade;
pub mod workload;
