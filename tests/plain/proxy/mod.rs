//! The proxy in this process, without a kernel half: the original destination is what the test says.

mod detection;
mod endpoints;
mod failures;
mod jwks;
mod limits;
mod outcomes;
mod policy;
mod relay;
pub mod world;
