//! The engine against a table of cases, a naive evaluator, and normalisation against what it must guarantee.

mod normalize;
mod property;
mod reference;
mod table;
