//! Authorization: whether a connection or a request may pass. Pure: no I/O, no clock.
//!
//! # Layout
//!
//! - [`spec`], policies as they are written; `pattern`, what a value is compared with
//! - [`facts`], what is known of a connection or request; [`attribute`], where rules find their values in it
//! - [`normalize`], one spelling for paths and hosts
//! - `compile`, from policies to conditions; `index`, which rules may match; [`engine`], the decision

pub mod attribute;
mod compile;
pub mod engine;
pub mod facts;
mod index;
pub mod normalize;
mod pattern;
pub mod spec;
#[cfg(test)]
mod tests;

pub use compile::{CompileError, check_value};
pub use engine::{Considered, DEFAULT, Decision, PolicySet, RuleName};
pub use facts::{Claims, Facts, Request};
pub use normalize::PathNormalization;
pub use spec::{Action, Condition, Operation, Policy, Posture, Rule, Source};
