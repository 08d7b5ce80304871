//! Links of programs whose links aya makes and does not let anybody pin.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// Commands of bpf(2), from linux/bpf.h.
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_LINK_CREATE: libc::c_int = 28;

/// `BPF_CGROUP_GETSOCKOPT`
pub const GETSOCKOPT: u32 = 21;
/// `BPF_CGROUP_SETSOCKOPT`
pub const SETSOCKOPT: u32 = 22;

/// `link_create` of `union bpf_attr`, as far as it is used.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// The commands on pinned objects of `union bpf_attr`, as far as they are used.
#[repr(C)]
#[derive(Default)]
struct ObjectPin {
    path: u64,
    object: u32,
    flags: u32,
}

/// Attaches a program to a cgroup; it stays attached while the link is open or pinned.
pub fn link_to_cgroup(
    program: &impl AsFd,
    cgroup: &impl AsFd,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let number = |fd: &dyn AsRawFd| u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX);
    let attributes = LinkCreate {
        program: number(&program.as_fd()),
        target: number(&cgroup.as_fd()),
        attach_type,
        flags: 0,
    };
    // SAFETY: the attributes are live, initialised and of the size that is given; the kernel keeps no pointer.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_LINK_CREATE,
            &raw const attributes,
            size_of::<LinkCreate>(),
        )
    };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives a link a name on bpffs, which keeps it attached.
pub fn pin(link: &impl AsFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = ObjectPin {
        path: path.as_ptr() as u64,
        object: u32::try_from(link.as_fd().as_raw_fd()).unwrap_or(u32::MAX),
        flags: 0,
    };
    // SAFETY: the attributes and the path that they point to are live during the call and of the size that is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_PIN,
            &raw const attributes,
            size_of::<ObjectPin>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
