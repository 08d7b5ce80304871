//! What the operating system offers and no safe crate wraps. The only unsafe code of the userspace half is in
//! `sockopt` and `memory`.

pub mod cgroup;
pub mod diag;
pub mod memory;
pub mod sockopt;
