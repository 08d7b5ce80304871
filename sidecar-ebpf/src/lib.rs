//! The kernel half's decisions, so that they can be tested on the host: [`decide`] asks for nothing, [`evidence`] for what
//! its trait says.

#![cfg_attr(not(test), no_std)]

pub mod decide;
pub mod evidence;
