//! The task that runs, and the time.

use aya_ebpf::helpers::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_task,
    bpf_ktime_get_ns,
};

use super::{
    TUNABLES,
    socket::{pointer, probe},
};

/// Id of the current task's cgroup at `level` below the root (1 is a child of the root), or 0.
#[inline(always)]
pub fn ancestor_cgroup(level: i32) -> u64 {
    // SAFETY: no pointers.
    unsafe { bpf_get_current_ancestor_cgroup_id(level) }
}

/// Process id of the current task.
#[inline(always)]
pub fn current_pid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// The first argument of a system call, from its `pt_regs`.
#[inline(always)]
pub fn first_argument(registers: *const u8) -> Option<u64> {
    probe(registers, TUNABLES.load().first_argument).map(u64::from_ne_bytes)
}

/// Whether descriptor `fd` of the current task is a socket; `None` if it cannot be told.
#[inline(always)]
pub fn is_socket(fd: u32) -> Option<bool> {
    const S_IFMT: u16 = 0o170_000;
    const S_IFSOCK: u16 = 0o140_000;
    let tunables = TUNABLES.load();
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    let files = pointer(task, tunables.files)?;
    let fdt = pointer(files, tunables.fdt)?;
    let array = pointer(fdt, tunables.fd)?;
    let file = pointer(array + fd as u64 * 8, 0)?;
    let inode = pointer(file, tunables.inode)?;
    let mode = u16::from_ne_bytes(probe(inode as *const u8, tunables.mode)?);
    Some(mode & S_IFMT == S_IFSOCK)
}

/// Nanoseconds of the monotonic clock.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}
