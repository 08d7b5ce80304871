//! What the operating system offers and no safe crate wraps. The only unsafe code of the userspace half is in
//! `sockopt`.

pub mod cgroup;
pub mod diag;
pub mod sockopt;
