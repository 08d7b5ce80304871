//! The task that runs, and the time.

use aya_ebpf::helpers::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_pid_tgid, bpf_ktime_get_ns,
    generated::{bpf_get_current_task_btf, bpf_set_retval, bpf_task_pt_regs},
};

use super::{LOAD_CONSTANTS, socket::probe};

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

/// Has the system call that is about to be refused fail with `errno` rather than EPERM, where the kernel can.
#[inline(always)]
pub fn fail_with(errno: i32) {
    // Constant when the verifier looks: older kernels have no such helper.
    if LOAD_CONSTANTS.load().set_retval != 0 {
        // SAFETY: no pointers.
        unsafe { bpf_set_retval(-errno) };
    }
}

/// The number of the system call that the current task is in, from the registers with which it entered the kernel; `None` where
/// it is in none.
#[derive(Clone, Copy)]
pub struct SystemCall(Option<u32>);

/// Threads of the kernel's, for io_uring or itself: their registers are a copy of whatever their maker was at.
const PF_IO_WORKER: u32 = 0x10;
const PF_KTHREAD: u32 = 0x20_0000;

impl SystemCall {
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: the helpers give the current task and its registers, which live as long as the program runs.
        let (task, registers) = unsafe {
            let task = bpf_get_current_task_btf();
            (task as *const u8, bpf_task_pt_regs(task) as *const u8)
        };
        let constants = LOAD_CONSTANTS.load();
        let flags = probe(task, constants.task_flags).map(u32::from_ne_bytes);
        let own = flags.is_some_and(|flags| flags & (PF_IO_WORKER | PF_KTHREAD) == 0);
        Self(if own {
            probe(registers, constants.call_number).map(u32::from_ne_bytes)
        } else {
            None
        })
    }

    #[inline(always)]
    pub fn splices(self) -> bool {
        self.0 == Some(LOAD_CONSTANTS.load().splice_number)
    }

    /// Whether it reads a socket, and both queues of one in the map.
    #[inline(always)]
    pub fn reads(self) -> bool {
        let [read, readv, recvfrom, recvmsg, recvmmsg] = LOAD_CONSTANTS.load().read_numbers;
        self.0.is_some_and(|number| {
            number == read
                || number == readv
                || number == recvfrom
                || number == recvmsg
                || number == recvmmsg
        })
    }
}

/// Nanoseconds of the monotonic clock.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}
