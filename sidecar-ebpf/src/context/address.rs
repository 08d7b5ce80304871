//! The contexts that say who connects to whom: sock_create, sock_addr, and sk_lookup.

use core::{mem::MaybeUninit, ptr};

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_tuple,
    helpers::{
        bpf_get_netns_cookie, bpf_get_socket_cookie,
        generated::{bpf_sk_lookup_tcp, bpf_sk_release},
    },
    programs::{SkLookupContext, SockAddrContext, SockContext},
};
use sidecar_common::address::{Address, Ip};

use super::socket::Socket;

pub const AF_INET: u32 = 2;
pub const AF_INET6: u32 = 10;

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

/// cgroup/connect and cgroup/getpeername: the address that the caller gave or will get.
pub trait UserAddress {
    fn socket(&self) -> Option<Socket>;
    fn cookie(&self) -> u64;
    fn netns_cookie(&self) -> u64;
    fn kind(&self) -> (u32, u32);
    fn address4(&self) -> Address;
    fn address6(&self) -> Address;
    fn set_address4(&self, address: Address);
    fn set_address6(&self, address: Address);
    fn listener<R>(&self, at: Address, look: impl FnOnce(Socket) -> R) -> Option<R>;
}

/// `BPF_F_CURRENT_NETNS`: the network namespace of the context's socket.
const CURRENT_NETNS: u64 = u64::MAX;

impl UserAddress for SockAddrContext {
    #[inline(always)]
    fn socket(&self) -> Option<Socket> {
        // SAFETY: a context field.
        Socket::new(unsafe { (*self.sock_addr).__bindgen_anon_1.sk })
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_socket_cookie(self.as_ptr()) }
    }

    /// Of the socket's network namespace.
    #[inline(always)]
    fn netns_cookie(&self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_netns_cookie(self.as_ptr()) }
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

    /// Looks at the TCP socket that listens at `at`, an address of the socket's own loopback, for connections from there.
    #[inline(always)]
    fn listener<R>(&self, at: Address, look: impl FnOnce(Socket) -> R) -> Option<R> {
        let mut tuple = MaybeUninit::<bpf_sock_tuple>::zeroed();
        let port = at.port.to_be();
        // SAFETY: the helper reads as many bytes of the tuple as it is told; the socket that it gives is released once.
        unsafe {
            let ends = &raw mut (*tuple.as_mut_ptr()).__bindgen_anon_1;
            let bytes = if at.ip.is_v4() {
                let v4 = &raw mut (*ends).ipv4;
                (*v4).saddr = at.ip.0[3];
                (*v4).daddr = at.ip.0[3];
                (*v4).dport = port;
                size_of_val(&*v4)
            } else {
                let v6 = &raw mut (*ends).ipv6;
                (*v6).saddr = at.ip.0;
                (*v6).daddr = at.ip.0;
                (*v6).dport = port;
                size_of_val(&*v6)
            };
            let found = bpf_sk_lookup_tcp(
                self.as_ptr(),
                tuple.as_mut_ptr(),
                bytes as u32,
                CURRENT_NETNS,
                0,
            );
            let looked = Socket::new(found).map(look);
            if !found.is_null() {
                bpf_sk_release(found.cast());
            }
            looked
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

/// Context words must be read one by one: the verifier refuses wider loads.
#[inline(always)]
pub(super) unsafe fn read_ip6(words: *const [u32; 4]) -> [u32; 4] {
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
