//! The only unsafe code of the kernel half: typed access to contexts, helpers and kernel structures.
//!
//! Every pointer here comes from the kernel and is checked by the verifier at load: a program that could
//! dereference a bad one is refused, which is the SAFETY argument of the whole file.

use core::ptr;

use aya_ebpf::{
    EbpfContext, Global,
    bindings::{bpf_sock, bpf_sock_ops},
    btf_maps::ProgramArray,
    helpers::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_task,
        bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_probe_read_kernel_buf,
        generated::{bpf_sk_storage_get, bpf_skc_to_tcp_sock},
    },
    programs::{
        SkLookupContext, SkMsgContext, SockAddrContext, SockContext, SockOpsContext, SockoptContext,
    },
};
use sidecar_common::{
    address::{Address, Ip},
    flow::FlowKey,
    settings::Tunables,
};

/// Offsets and switches, set by the loader before the programs are loaded.
#[unsafe(no_mangle)]
pub static TUNABLES: Global<Tunables> = Global::new(Tunables {
    copied_seq: 0,
    write_seq: 0,
    sk_user_data: 0,
    ingress_msg: 0,
    redirect: 0,
    naive: 0,
    splice_number: 0,
    first_argument: 0,
    files: 0,
    fdt: 0,
    fd: 0,
    inode: 0,
    mode: 0,
    sk_socket: 0,
    socket_file: 0,
    file_flags: 0,
    ulp_ops: 0,
    _pad: 0,
});

/// A socket that a context points at; not null.
#[derive(Clone, Copy)]
pub struct Socket(*mut bpf_sock);

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

impl Socket {
    #[inline(always)]
    fn new(sk: *mut bpf_sock) -> Option<Self> {
        if sk.is_null() { None } else { Some(Self(sk)) }
    }

    /// `TCP_*` state.
    #[inline(always)]
    pub fn state(self) -> u32 {
        // SAFETY: not null; the verifier checks the rest.
        unsafe { (*self.0).state }
    }

    /// The kernel's `tcp_sock`, to be read with `probe`.
    #[inline(always)]
    pub fn tcp(self) -> Option<TcpSocket> {
        // SAFETY: the helper takes any socket and returns null if it is not TCP.
        let tcp = unsafe { bpf_skc_to_tcp_sock(self.0.cast()) };
        if tcp.is_null() {
            None
        } else {
            Some(TcpSocket(tcp.cast()))
        }
    }
}

/// A `struct tcp_sock`, read at the offsets of the running kernel's BTF.
#[derive(Clone, Copy)]
pub struct TcpSocket(*const u8);

impl TcpSocket {
    /// The address as a number, to be kept in a map.
    #[inline(always)]
    pub fn to_word(self) -> u64 {
        self.0 as u64
    }

    /// From a number of `to_word`. If the socket has gone since, what is read is meaningless, not harmful.
    #[inline(always)]
    pub fn from_word(word: u64) -> Self {
        Self(word as *const u8)
    }

    #[inline(always)]
    pub fn copied_seq(self) -> Option<u32> {
        probe(self.0, TUNABLES.load().copied_seq).map(u32::from_ne_bytes)
    }

    #[inline(always)]
    pub fn write_seq(self) -> Option<u32> {
        probe(self.0, TUNABLES.load().write_seq).map(u32::from_ne_bytes)
    }

    /// Whether reads and writes of the application return at once (`O_NONBLOCK`); `None` before it has a descriptor
    /// for the socket.
    #[inline(always)]
    pub fn is_nonblocking(self) -> Option<bool> {
        const O_NONBLOCK: u32 = 0o4000;
        let tunables = TUNABLES.load();
        let socket = pointer(self.0 as u64, tunables.sk_socket).filter(|s| *s != 0)?;
        let file = pointer(socket, tunables.socket_file).filter(|f| *f != 0)?;
        let flags = u32::from_ne_bytes(probe(file as *const u8, tunables.file_flags)?);
        Some(flags & O_NONBLOCK != 0)
    }

    /// Whether a protocol such as kernel TLS sits on top.
    #[inline(always)]
    pub fn has_ulp(self) -> bool {
        pointer(self.0 as u64, TUNABLES.load().ulp_ops) != Some(0)
    }

    /// Whether the socket's redirected bytes have all been read. The list head of `sk_psock.ingress_msg`
    /// points to itself when it is empty; the low bits of `sk_user_data` are flags.
    #[inline(always)]
    pub fn ingress_is_empty(self) -> bool {
        let tunables = TUNABLES.load();
        let Some(user_data) = probe(self.0, tunables.sk_user_data).map(u64::from_ne_bytes) else {
            return false;
        };
        let psock = user_data & !7;
        if psock == 0 {
            // Out of the map: there is no such queue.
            return true;
        }
        let head = psock + tunables.ingress_msg as u64;
        probe(head as *const u8, 0).map(u64::from_ne_bytes) == Some(head)
    }
}

#[inline(always)]
fn probe<const N: usize>(base: *const u8, offset: u32) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: the helper checks the address itself and fails instead of faulting.
    unsafe { bpf_probe_read_kernel_buf(base.wrapping_add(offset as usize), &mut bytes) }.ok()?;
    Some(bytes)
}

pub const AF_INET: u32 = 2;
pub const AF_INET6: u32 = 10;

/// Context words must be read one by one: the verifier refuses wider loads.
#[inline(always)]
unsafe fn read_ip6(words: *const [u32; 4]) -> [u32; 4] {
    let word = words.cast::<u32>();
    // SAFETY: four words of the context.
    unsafe {
        [
            ptr::read_volatile(word),
            ptr::read_volatile(word.add(1)),
            ptr::read_volatile(word.add(2)),
            ptr::read_volatile(word.add(3)),
        ]
    }
}

/// cgroup/connect and cgroup/getpeername: the address that the caller gave or will get.
pub trait UserAddress {
    fn socket(&self) -> Option<Socket>;
    fn kind(&self) -> (u32, u32);
    fn address4(&self) -> Address;
    fn address6(&self) -> Address;
    fn set_address4(&self, address: Address);
    fn set_address6(&self, address: Address);
}

impl UserAddress for SockAddrContext {
    #[inline(always)]
    fn socket(&self) -> Option<Socket> {
        // SAFETY: a context field.
        Socket::new(unsafe { (*self.sock_addr).__bindgen_anon_1.sk })
    }

    /// Socket type and protocol.
    #[inline(always)]
    fn kind(&self) -> (u32, u32) {
        // SAFETY: context fields.
        unsafe { ((*self.sock_addr).type_, (*self.sock_addr).protocol) }
    }

    #[inline(always)]
    fn address4(&self) -> Address {
        // SAFETY: context fields.
        unsafe {
            let a = self.sock_addr;
            Address::new(
                Ip::from_v4((*a).user_ip4),
                u16::from_be((*a).user_port as u16),
            )
        }
    }

    #[inline(always)]
    fn address6(&self) -> Address {
        // SAFETY: context fields.
        unsafe {
            let a = self.sock_addr;
            Address::new(
                Ip(read_ip6(&raw const (*a).user_ip6)),
                u16::from_be((*a).user_port as u16),
            )
        }
    }

    #[inline(always)]
    fn set_address4(&self, address: Address) {
        // SAFETY: context fields that may be written.
        unsafe {
            ptr::write_volatile(&raw mut (*self.sock_addr).user_ip4, address.ip.0[3]);
            ptr::write_volatile(
                &raw mut (*self.sock_addr).user_port,
                u32::from(address.port.to_be()),
            );
        }
    }

    #[inline(always)]
    fn set_address6(&self, address: Address) {
        // SAFETY: as above, word by word.
        unsafe {
            let word = (&raw mut (*self.sock_addr).user_ip6).cast::<u32>();
            ptr::write_volatile(word, address.ip.0[0]);
            ptr::write_volatile(word.add(1), address.ip.0[1]);
            ptr::write_volatile(word.add(2), address.ip.0[2]);
            ptr::write_volatile(word.add(3), address.ip.0[3]);
            ptr::write_volatile(
                &raw mut (*self.sock_addr).user_port,
                u32::from(address.port.to_be()),
            );
        }
    }
}

/// cgroup/sock_create: the new socket, its family, type and protocol.
#[inline(always)]
pub fn created(ctx: &SockContext) -> Option<(Socket, u32, u32, u32)> {
    let socket = Socket::new(ctx.sock)?;
    // SAFETY: context fields.
    unsafe {
        Some((
            socket,
            (*ctx.sock).family,
            (*ctx.sock).type_,
            (*ctx.sock).protocol,
        ))
    }
}

/// The flow of a context that names both ends, as the socket sees it.
pub trait Ends {
    fn flow(&self) -> FlowKey;
}

impl Ends for SockOpsContext {
    #[inline(always)]
    fn flow(&self) -> FlowKey {
        // SAFETY: context fields; the helper takes this context.
        unsafe {
            let ops = self.ops;
            let (local, remote) = if (*ops).family == AF_INET {
                (
                    Ip::from_v4((*ops).local_ip4),
                    Ip::from_v4((*ops).remote_ip4),
                )
            } else {
                (
                    Ip(read_ip6(&raw const (*ops).local_ip6)),
                    Ip(read_ip6(&raw const (*ops).remote_ip6)),
                )
            };
            FlowKey::new(
                bpf_get_netns_cookie(self.as_ptr()),
                Address::new(local, (*ops).local_port as u16),
                Address::new(remote, u32::from_be((*ops).remote_port) as u16),
            )
        }
    }
}

/// sk_lookup: protocol, local and remote address of the packet.
#[inline(always)]
pub fn packet(ctx: &SkLookupContext) -> (u32, Address, Address) {
    // SAFETY: context fields.
    unsafe {
        let l = ctx.lookup;
        let (local, remote) = if (*l).family == AF_INET {
            (Ip::from_v4((*l).local_ip4), Ip::from_v4((*l).remote_ip4))
        } else {
            (
                Ip(read_ip6(&raw const (*l).local_ip6)),
                Ip(read_ip6(&raw const (*l).remote_ip6)),
            )
        };
        (
            (*l).protocol,
            Address::new(local, (*l).local_port as u16),
            Address::new(remote, u16::from_be((*l).remote_port)),
        )
    }
}

/// What the sock_ops programs need beyond aya's accessors.
pub trait Operation {
    fn socket(&self) -> Option<Socket>;
    fn cookie(&self) -> u64;
    fn netns_cookie(&self) -> u64;
    #[expect(
        clippy::mut_from_ref,
        reason = "aya's SockHash::update wants it so; the context outlives the call"
    )]
    fn raw(&self) -> &mut bpf_sock_ops;
}

impl Operation for SockOpsContext {
    #[inline(always)]
    fn socket(&self) -> Option<Socket> {
        // SAFETY: context fields; `sk` is null for a request socket.
        unsafe {
            if (*self.ops).is_fullsock == 0 {
                return None;
            }
            Socket::new((*self.ops).__bindgen_anon_2.sk)
        }
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_socket_cookie(self.as_ptr()) }
    }

    #[inline(always)]
    fn netns_cookie(&self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_netns_cookie(self.as_ptr()) }
    }

    #[inline(always)]
    fn raw(&self) -> &mut bpf_sock_ops {
        // SAFETY: the context is valid for the run of the program.
        unsafe { &mut *self.ops }
    }
}

/// sk_msg: the sending socket.
#[inline(always)]
pub fn sender(ctx: &SkMsgContext) -> Option<Socket> {
    // SAFETY: a context field.
    Socket::new(unsafe { (*ctx.msg).__bindgen_anon_3.sk })
}

/// Goes on with the program in `programs`, and does not come back if there is one.
#[inline(always)]
pub fn tail_call(ctx: &SkMsgContext, programs: &ProgramArray<1>) {
    // SAFETY: nothing of ours has to be dropped.
    unsafe { programs.tail_call(ctx, 0) }
}

/// cgroup/getsockopt and setsockopt.
pub trait SocketOption {
    fn socket(&self) -> Option<Socket>;
    fn name(&self) -> (i32, i32);
    #[expect(
        clippy::mut_from_ref,
        reason = "the value is the kernel's, not the context's, and each hook takes it once"
    )]
    fn value<const N: usize>(&self) -> Option<&mut [u8; N]>;
    fn answered(&self, length: i32);
    fn taken(&self);
}

impl SocketOption for SockoptContext {
    #[inline(always)]
    fn socket(&self) -> Option<Socket> {
        // SAFETY: a context field.
        Socket::new(unsafe { (*self.sockopt).__bindgen_anon_1.sk })
    }

    /// Level and option.
    #[inline(always)]
    fn name(&self) -> (i32, i32) {
        // SAFETY: context fields.
        unsafe { ((*self.sockopt).level, (*self.sockopt).optname) }
    }

    /// The first `N` bytes of the value, if there are so many.
    #[inline(always)]
    fn value<const N: usize>(&self) -> Option<&mut [u8; N]> {
        // SAFETY: bounds are checked against `optval_end` before the slice is made.
        unsafe {
            let start = (*self.sockopt).__bindgen_anon_2.optval as usize;
            let end = (*self.sockopt).__bindgen_anon_3.optval_end as usize;
            if start + N > end {
                return None;
            }
            (start as *mut [u8; N]).as_mut()
        }
    }

    /// getsockopt succeeds with `length` bytes. Two volatile 32-bit stores: merged into one of 64 bits they
    /// are refused by the verifier.
    #[inline(always)]
    fn answered(&self, length: i32) {
        // SAFETY: context fields that may be written.
        unsafe {
            ptr::write_volatile(&raw mut (*self.sockopt).retval, 0);
            ptr::write_volatile(&raw mut (*self.sockopt).optlen, length);
        }
    }

    /// setsockopt is done; the kernel's own handling is skipped.
    #[inline(always)]
    fn taken(&self) {
        // SAFETY: a context field that may be written.
        unsafe { ptr::write_volatile(&raw mut (*self.sockopt).optlen, -1) }
    }
}

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

#[inline(always)]
fn pointer(base: u64, offset: u32) -> Option<u64> {
    probe(base as *const u8, offset).map(u64::from_ne_bytes)
}

/// Nanoseconds of the monotonic clock.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// For logging.
#[inline(always)]
pub fn octets(ip: Ip) -> [u8; 16] {
    // SAFETY: 16 bytes of plain data either way.
    unsafe { core::mem::transmute(ip) }
}

/// Bytes of an [`Address`] that came through setsockopt.
#[inline(always)]
pub fn address_from(bytes: &[u8; 20]) -> Address {
    // SAFETY: plain data of that size; alignment is not assumed.
    unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) }
}

/// Bytes of a [`FlowKey`] that came through setsockopt.
#[inline(always)]
pub fn flow_from(bytes: &[u8; 48]) -> FlowKey {
    // SAFETY: as above.
    unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) }
}

/// A [`FlowKey`] for getsockopt.
#[inline(always)]
pub fn flow_bytes(flow: FlowKey) -> [u8; 48] {
    // SAFETY: plain data without padding.
    unsafe { core::mem::transmute(flow) }
}

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
