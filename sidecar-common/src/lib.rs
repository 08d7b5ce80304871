//! Types that the kernel half and the userspace half share. Everything here is `repr(C)`, padded by hand,
//! plain data, and asserted in size: both halves must read the same bytes.
//!
//! # Layout
//!
//! - [`address`]: IP addresses and ports, IPv4 as v4-mapped IPv6
//! - [`socket_state`]: what the kernel remembers of a socket, and what it hands from one end of a connection to the other
//! - [`flow`]: keys and evidence of redirected flows
//! - [`settings`]: workloads, cgroups, exclusions, constants
//! - [`denial`]: which rule for destinations says
//! - [`record`]: counters and events
//! - [`names`]: names of maps and programs
//! - [`layout`]: the ABI version

#![cfg_attr(not(test), no_std)]

pub mod address;
pub mod denial;
pub mod flow;
pub mod layout;
pub mod names;
pub mod record;
pub mod settings;
pub mod socket_state;
