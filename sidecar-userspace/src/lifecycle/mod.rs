//! From start to end of the process: descriptors, signals, readiness, drain.

pub mod descriptors;
pub mod drain;
pub mod memory;
pub mod readiness;
pub mod signal;
pub mod thrift;
