//! The kernel half's pure decisions, so that they can be tested on the host.

#![cfg_attr(not(test), no_std)]

pub mod decide;
