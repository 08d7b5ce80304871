//! What the operating system offers and no safe crate wraps. The only unsafe code of the userspace half is here, in
//! `bpf`, `memory`, `mount`, `netns` and `sockopt`.

pub mod bpf;
pub mod capability;
pub mod cgroup;
pub mod cgroupns;
pub mod diag;
pub mod memory;
pub mod memory_limit;
pub mod mount;
pub mod netns;
pub mod sockopt;
