//! The few things that no safe crate offers: integer socket options, one receive through io_uring, and a descriptor under tokio.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use io_uring::{IoUring, opcode, types};
use tokio::io::{Interest, unix::AsyncFd};

/// `setsockopt` with an `int`, for options that neither socket2 nor rustix know.
pub fn set_option(socket: impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the pointer is to a live `i32` of exactly `length` bytes, and the descriptor is borrowed, so open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The least number of bytes for which a socket counts as readable.
pub fn set_receive_low_water(socket: impl AsFd, bytes: i32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes)
}

/// `connect` returns at once; the first write leaves in the SYN if there is a cookie.
pub fn set_fast_open_connect(socket: impl AsFd) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1)
}

/// A listener takes data in the SYN.
pub fn set_fast_open_listen(socket: impl AsFd) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 64)
}

/// Has tokio tell when `descriptor` can be read.
pub fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, answers with the same number as long as it lives, and lives as long as the `AsyncFd`
    // that owns it.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    Ok(registered?)
}

/// `splice(2)` from a socket into a pipe by the system call of 32-bit programs, whose number is another one. Returns at once.
#[cfg(target_arch = "x86_64")]
pub fn compat_splice(socket: impl AsFd, pipe: impl AsFd, bytes: u32) -> io::Result<usize> {
    const SPLICE: i64 = 313;
    let result: i64;
    // SAFETY: the call takes two descriptors, which are borrowed, and no pointers. It keeps all registers but those that are
    // named; `rbx` and `rbp`, which the compiler keeps for itself, are put back.
    unsafe {
        std::arch::asm!(
            "push rbx",
            "push rbp",
            "mov ebx, r12d",
            "mov ebp, r13d",
            "int 0x80",
            "pop rbp",
            "pop rbx",
            inlateout("rax") SPLICE => result,
            in("r12") socket.as_fd().as_raw_fd(),
            in("rcx") 0,
            in("rdx") pipe.as_fd().as_raw_fd(),
            in("rsi") 0,
            in("rdi") u64::from(bytes),
            in("r13") libc::SPLICE_F_NONBLOCK,
            lateout("r8") _,
            lateout("r9") _,
            lateout("r10") _,
            lateout("r11") _,
        );
    }
    let result = result as i32;
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

/// Only where 64-bit programs may make system calls of 32-bit ones.
#[cfg(not(target_arch = "x86_64"))]
pub fn compat_splice(_: impl AsFd, _: impl AsFd, _: u32) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Receives through a ring of its own, one operation at a time.
pub struct RingReader {
    ring: IoUring,
}

impl RingReader {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            ring: IoUring::new(2)?,
        })
    }

    /// As `recv(2)`: the number of bytes received, 0 at the end of the stream.
    pub fn receive(&mut self, socket: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
        let length = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        let entry = opcode::Recv::new(
            types::Fd(socket.as_fd().as_raw_fd()),
            buffer.as_mut_ptr(),
            length,
        )
        .build();
        // SAFETY: `buffer` and `socket` are borrowed until this function returns, and it returns only once the
        // operation has completed, so the kernel never writes to the buffer after its end.
        unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)?;
        self.complete()
    }

    /// As `splice(2)` from a socket into a pipe; returns at once.
    pub fn splice(&mut self, socket: impl AsFd, pipe: impl AsFd, bytes: u32) -> io::Result<usize> {
        const NO_OFFSET: i64 = -1;
        let [from, into] = [socket.as_fd(), pipe.as_fd()].map(|fd| types::Fd(fd.as_raw_fd()));
        let entry = opcode::Splice::new(from, NO_OFFSET, into, NO_OFFSET, bytes)
            .flags(libc::SPLICE_F_NONBLOCK)
            .build();
        // SAFETY: both descriptors are borrowed until this function returns, by when the operation has completed.
        unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)?;
        self.complete()
    }

    /// Waits for the one operation that was begun.
    fn complete(&mut self) -> io::Result<usize> {
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The operation may still be in flight and own the buffer: nothing sound is left to do.
                Err(_) => std::process::abort(),
            }
            if let Some(completion) = self.ring.completion().next() {
                return usize::try_from(completion.result())
                    .map_err(|_| io::Error::from_raw_os_error(-completion.result()));
            }
        }
    }
}
