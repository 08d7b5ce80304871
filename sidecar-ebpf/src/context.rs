//! The only unsafe code of the kernel half: typed access to contexts, helpers and kernel structures.
//!
//! Every pointer here and below comes from the kernel and is checked by the verifier at load: a program that could
//! dereference a bad one is refused, which is the SAFETY argument of all of these files.

mod address;
mod operation;
mod option;
mod skb;
mod socket;
mod storage;
mod subflow;
mod task;

use aya_ebpf::Global;
use sidecar_common::{address::Ip, flow::HalfFlow, settings::LoadConstants};
use sidecar_ebpf::evidence::Half;

pub use self::{
    address::{AF_INET, AF_INET6, UserAddress, created, packet},
    operation::{Ends, Operation, sender, tail_call, take_out},
    option::{DeviceName, SetOption, SocketOption, address_from},
    skb::Packet,
    socket::{Socket, TcpSocket, traced},
    storage::SocketStorage,
    subflow::of_subflow,
    task::{SystemCall, ancestor_cgroup, current_pid, fail_with, now_ns},
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
    read_numbers: [0; 5],
    call_number: 0,
    task_flags: 0,
    sk_socket: 0,
    socket_file: 0,
    file_flags: 0,
    ulp_ops: 0,
    set_retval: 0,
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

/// A map's value that several look at: each touches it for a moment only.
pub struct Entry<T>(*mut T);

impl<T> Entry<T> {
    /// `value`: from a map lookup.
    #[inline(always)]
    pub fn new(value: *mut T) -> Self {
        Self(value)
    }
}

impl Half for Entry<HalfFlow> {
    #[inline(always)]
    fn read<R>(&self, look: impl FnOnce(&HalfFlow) -> R) -> R {
        // SAFETY: as in `read`.
        look(unsafe { &*self.0 })
    }

    #[inline(always)]
    fn write(&self, change: impl FnOnce(&mut HalfFlow)) {
        // SAFETY: as in `update`.
        change(unsafe { &mut *self.0 });
    }
}

/// For logging.
#[inline(always)]
pub fn octets(ip: Ip) -> [u8; 16] {
    // SAFETY: 16 bytes of plain data either way.
    unsafe { core::mem::transmute(ip) }
}
