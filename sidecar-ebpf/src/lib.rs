//! The kernel half's decisions, so that they can be tested on the host: [`decide`] asks for nothing, [`evidence`]
//! and [`packet`] for what their traits say.

#![cfg_attr(not(test), no_std)]

pub mod decide;
pub mod evidence;
pub mod packet;
