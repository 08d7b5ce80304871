//! What the kernel half keeps at a socket.

use core::ptr;

use aya_ebpf::helpers::generated::bpf_sk_storage_get;

use super::socket::Socket;

/// `BPF_MAP_TYPE_SK_STORAGE` whose entries are copied from a listener to the sockets it accepts.
/// aya's own definition fixes the flags; the layout is the one that its loader reads.
#[repr(C)]
pub struct SocketStorage<T> {
    r#type: *const [i32; 24],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC | BPF_F_CLONE],
}

const BPF_F_NO_PREALLOC: usize = 1;
const BPF_F_CLONE: usize = 1 << 9;
const CREATE: u64 = 1;

// SAFETY: a placeholder that the loader replaces; its pointers are never read.
unsafe impl<T> Sync for SocketStorage<T> {}

impl<T> SocketStorage<T> {
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// The socket's entry, if it has one.
    #[inline(always)]
    pub fn get(&self, socket: Socket) -> Option<&mut T> {
        self.entry(socket, ptr::null_mut(), 0)
    }

    /// The socket's entry, `value` if it had none; `None` when the kernel has no memory for it.
    #[inline(always)]
    pub fn get_or_insert(&self, socket: Socket, value: &mut T) -> Option<&mut T> {
        self.entry(socket, value, CREATE)
    }

    #[inline(always)]
    #[expect(
        clippy::mut_from_ref,
        reason = "entries live in the kernel, not in the placeholder"
    )]
    fn entry(&self, socket: Socket, value: *mut T, flags: u64) -> Option<&mut T> {
        let map = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the map and the socket are the kernel's; `value` is null or on our stack. An entry is
        // written by hooks that hold its socket's lock.
        unsafe {
            bpf_sk_storage_get(map, socket.0.cast(), value.cast(), flags)
                .cast::<T>()
                .as_mut()
        }
    }
}
