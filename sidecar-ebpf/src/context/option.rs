//! The contexts of getsockopt and setsockopt, and what comes and goes through them.

use core::ptr;

use aya_ebpf::{
    EbpfContext,
    helpers::generated::bpf_setsockopt,
    programs::{SockAddrContext, SockOpsContext, SockoptContext},
};
use sidecar_common::{address::Address, settings::DEVICE_NAME_BYTES};

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
    fn device_name(&self) -> DeviceName;
    fn answered(&self, length: i32);
    fn taken(&self);
    fn unchanged(&self);
}

/// Of a network device, with a zero at its end.
pub type DeviceName = [u8; DEVICE_NAME_BYTES];

const SOL_SOCKET: i32 = 1;
const SO_REUSEADDR: i32 = 2;
const SO_BINDTODEVICE: i32 = 25;

/// The hooks that may set options of their socket.
pub trait SetOption: EbpfContext {
    /// Binds the socket to a device, or with an empty name to none. Only CAP_NET_RAW may change a binding.
    #[inline(always)]
    fn bind_to_device(&self, mut name: DeviceName) -> Option<()> {
        let length = DEVICE_NAME_BYTES as i32;
        let value = name.as_mut_ptr().cast();
        // SAFETY: the helper takes this context, and reads so many bytes of the name.
        let result =
            unsafe { bpf_setsockopt(self.as_ptr(), SOL_SOCKET, SO_BINDTODEVICE, value, length) };
        (result == 0).then_some(())
    }

    /// Lets another socket that wants it, too, be bound to the same address and port. Before Linux 6.1 it cannot be set here.
    #[inline(always)]
    fn reuse_address(&self) {
        let mut on = 1_i32;
        let value = (&raw mut on).cast();
        // SAFETY: as above.
        let _ = unsafe { bpf_setsockopt(self.as_ptr(), SOL_SOCKET, SO_REUSEADDR, value, 4) };
    }
}

impl SetOption for SockAddrContext {}
impl SetOption for SockOpsContext {}

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

    /// The value as a name: as much of it as a name may have.
    #[inline(always)]
    fn device_name(&self) -> DeviceName {
        let mut name = [0; DEVICE_NAME_BYTES];
        // SAFETY: each byte is checked against `optval_end` before it is read.
        unsafe {
            let start = (*self.sockopt).__bindgen_anon_2.optval as usize;
            let end = (*self.sockopt).__bindgen_anon_3.optval_end as usize;
            let mut i = 0;
            while i < DEVICE_NAME_BYTES - 1 {
                if start + i + 1 > end {
                    break;
                }
                let byte = ptr::read_volatile((start + i) as *const u8);
                if byte == 0 {
                    break;
                }
                name[i] = byte;
                i += 1;
            }
        }
        name
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
