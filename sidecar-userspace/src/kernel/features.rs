//! LoadConstants of the kernel half that follow from the running kernel.

use std::sync::OnceLock;

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use sidecar_common::settings::{LoadConstants, NAIVE_JOIN, NAIVE_REDIRECT};

use super::{
    btf::{Btf, BtfError},
    proof::{Proof, Reach},
};

/// Numbers of system calls, and where `pt_regs` has the number of the one that a task is in (the kernel's system call tables
/// and arch/*/include/asm/ptrace.h).
struct Calls {
    splice: u32,
    /// As `LoadConstants::read_numbers`.
    reads: [u32; 5],
    /// Offset, in bytes.
    number: u32,
}

#[cfg(target_arch = "x86_64")]
const CALLS: Calls = Calls {
    splice: 275,
    reads: [0, 19, 45, 47, 299],
    number: 15 * 8,
};
#[cfg(target_arch = "aarch64")]
const CALLS: Calls = Calls {
    splice: 76,
    reads: [63, 65, 207, 212, 243],
    number: 35 * 8,
};

/// Set to `naive-redirect` or `naive-join`, it switches evidence off: for tests that must catch that, never for use.
pub const FAULT_VARIABLE: &str = "SIDECAR_FAULT";

/// What the fault switch says, as [`LoadConstants::naive`]; 0: it is not set.
pub fn fault() -> u32 {
    match std::env::var(FAULT_VARIABLE).as_deref() {
        Ok("naive-redirect") => NAIVE_REDIRECT,
        Ok("naive-join") => NAIVE_JOIN,
        _ => 0,
    }
}

/// What there is here, and how far redirect may go at most.
pub fn best() -> (LoadConstants, Reach) {
    match constants() {
        Ok(_) if !may_read_kernel() => (
            steering_only(),
            Reach::off(
                Proof::Programs,
                "programs may not read the kernel's memory, as where it is locked down",
            ),
        ),
        Ok(constants) => (constants, Reach::full()),
        Err(error) => (steering_only(), Reach::off(Proof::Types, error.to_string())),
    }
}

/// Offsets for the evidence, or why redirect is impossible here.
pub fn constants() -> Result<LoadConstants, BtfError> {
    let btf = Btf::of_kernel()?;
    Ok(LoadConstants {
        copied_seq: btf.offset("tcp_sock", "copied_seq")?,
        write_seq: btf.offset("tcp_sock", "write_seq")?,
        // `struct sock` is the first member of `tcp_sock`.
        sk_user_data: btf.offset("sock", "sk_user_data")?,
        ingress_msg: btf.offset("sk_psock", "ingress_msg")?,
        redirect: 1,
        naive: fault(),
        sk_socket: btf.offset("sock", "sk_socket")?,
        socket_file: btf.offset("socket", "file")?,
        file_flags: btf.offset("file", "f_flags")?,
        ulp_ops: btf.offset("inet_connection_sock", "icsk_ulp_ops")?,
        task_flags: btf.offset("task_struct", "flags")?,
        ..steering_only()
    })
}

/// Whether the evidence can be read at all.
fn may_read_kernel() -> bool {
    let read = is_helper_supported(ProgramType::SkMsg, BpfHelper::BPF_FUNC_probe_read_kernel);
    read.unwrap_or(false)
}

/// Asked once: the kernel is to load a program for the answer.
fn has_set_retval() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    let ask = || is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval);
    *ANSWER.get_or_init(|| ask().unwrap_or(false))
}

/// LoadConstants of a kernel without usable BTF: steering works, nothing is redirected.
fn steering_only() -> LoadConstants {
    LoadConstants {
        splice_number: CALLS.splice,
        read_numbers: CALLS.reads,
        call_number: CALLS.number,
        set_retval: u32::from(has_set_retval()),
        ..LoadConstants::default()
    }
}
