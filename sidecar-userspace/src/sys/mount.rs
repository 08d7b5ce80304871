//! Attributes of mounts that nobody sees yet.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// mount_setattr(2); the libc crate knows it for some targets only. The number is the same on all architectures.
const SYS_MOUNT_SETATTR: libc::c_long = 442;
const RDONLY: u64 = 1;
const NOSUID: u64 = 2;
const NODEV: u64 = 4;
const NOEXEC: u64 = 8;

/// `struct mount_attr`.
#[repr(C)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Makes a mount that open_tree(2) has copied read-only, and good for nothing but the files in it.
pub fn make_read_only(tree: &impl AsFd) -> io::Result<()> {
    let attributes = Attributes {
        set: RDONLY | NOSUID | NODEV | NOEXEC,
        clear: 0,
        propagation: 0,
        user_namespace: 0,
    };
    // SAFETY: the path is a literal, the attributes are live, initialised and of the size that is given.
    let result = unsafe {
        libc::syscall(
            SYS_MOUNT_SETATTR,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
