//! The tests of the whole: the world they live in, and the traffic that they send through it.
//!
//! # Layout
//!
//! - [`world`]: namespaces, cgroups, workloads with or without a sidecar, gone again when they are dropped
//! - [`stream`], [`script`], [`random`]: what an integrity connection carries and how it behaves
//! - [`pod_security`]: what Kubernetes' `restricted` standard forbids pods
//! - [`report`]: what the program `traffic` (src/bin/traffic) tells about a run
//! - [`load`]: what the program `load` (src/bin/load) tells the benchmark (src/bin/bench)
//! - [`output`]: how both speak to who started them
//! - [`manifests`]: what deploy/kubernetes comes to
//! - [`leaks`]: what a sidecar holds in the kernel, and whether it is gone
//! - [`sys`]: the only unsafe

pub mod leaks;
pub mod load;
pub mod manifests;
pub mod output;
pub mod pod_security;
pub mod random;
pub mod report;
pub mod script;
pub mod stream;
pub mod sys;
pub mod world;
