//! The only unsafe code of the kernel half: typed access to contexts, helpers and kernel structures.
//!
//! Every pointer here and below comes from the kernel and is checked by the verifier at load: a program that could
//! dereference a bad one is refused, which is the SAFETY argument of all of these files.

mod address;
mod operation;
mod option;
mod socket;
mod storage;
mod task;

use aya_ebpf::Global;
use sidecar_common::{address::Ip, settings::LoadConstants};

pub use self::{
    address::{AF_INET, AF_INET6, UserAddress, created, packet},
    operation::{Ends, Operation, sender, tail_call},
    option::{SocketOption, address_from, flow_bytes, flow_from},
    socket::{Socket, TcpSocket},
    storage::SocketStorage,
    task::{SystemCall, ancestor_cgroup, current_pid, now_ns},
};

/// Offsets and switches, set by the loader before the programs are loaded.
#[unsafe(no_mangle)]
pub static LOAD_CONSTANTS: Global<LoadConstants> = Global::new(LoadConstants {
    copied_seq: 0,
    write_seq: 0,
    sk_user_data: 0,
    ingress_msg: 0,
    redirect: 0,
    naive: 0,
    splice_number: 0,
    call_number: 0,
    first_argument: 0,
    sk_socket: 0,
    socket_file: 0,
    file_flags: 0,
    ulp_ops: 0,
});

/// A copy of a map's value.
#[inline(always)]
pub fn read<T: Copy>(value: *const T) -> T {
    // SAFETY: from a map lookup; values are plain data and stay mapped for the run of the program.
    unsafe { *value }
}

/// Changes a map's value in place.
#[inline(always)]
pub fn update<T>(value: *mut T, change: impl FnOnce(&mut T)) {
    // SAFETY: as in `read`; other writers of the same word are excluded by the callers' rules.
    change(unsafe { &mut *value });
}

/// A map's value, to be read and written in place.
#[inline(always)]
pub fn entry<'a, T>(value: *mut T) -> &'a mut T {
    // SAFETY: as in `read`.
    unsafe { &mut *value }
}

/// For logging.
#[inline(always)]
pub fn octets(ip: Ip) -> [u8; 16] {
    // SAFETY: 16 bytes of plain data either way.
    unsafe { core::mem::transmute(ip) }
}
