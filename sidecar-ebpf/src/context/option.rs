//! The contexts of getsockopt and setsockopt, and what comes and goes through them.

use core::ptr;

use aya_ebpf::programs::SockoptContext;
use sidecar_common::address::Address;

use super::socket::Socket;

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
    fn unchanged(&self);
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

    /// setsockopt goes on with the value that the caller gave: of one of more than a page a program sees only the beginning,
    /// and the kernel fails the call unless it says this. Another program may have said before that the call is done.
    #[inline(always)]
    fn unchanged(&self) {
        const SMALLEST_PAGE: i32 = 4096;
        // SAFETY: a context field that may be written.
        unsafe {
            if ptr::read_volatile(&raw const (*self.sockopt).optlen) > SMALLEST_PAGE {
                ptr::write_volatile(&raw mut (*self.sockopt).optlen, 0);
            }
        }
    }
}

/// Bytes of an [`Address`] that came through setsockopt.
#[inline(always)]
pub fn address_from(bytes: &[u8; 20]) -> Address {
    // SAFETY: plain data of that size; alignment is not assumed.
    unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) }
}
