//! Network namespaces: ours, a process's and a socket's.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use super::sockopt;

/// A network namespace; it lives at least as long as this.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    /// The kernel's cookie, by which BPF knows it.
    pub cookie: u64,
}

/// What tells namespaces apart: device and inode.
pub type Id = (u64, u64);

impl Namespace {
    /// That of the calling thread.
    pub fn own() -> io::Result<Self> {
        Ok(Self {
            file: File::open("/proc/thread-self/ns/net")?,
            cookie: sockopt::netns_cookie()?,
        })
    }

    /// That of a socket, whoever made it. Needs CAP_NET_ADMIN.
    pub fn of_socket(socket: &impl AsFd) -> io::Result<Self> {
        // SIOCGSKNS of linux/sockios.h; libc has no name for it.
        const SIOCGSKNS: libc::Ioctl = 0x894c;
        // SAFETY: this request takes no argument and gives a new descriptor or -1.
        let fd = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCGSKNS) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(Self {
            file,
            cookie: sockopt::netns_cookie_of(socket)?,
        })
    }

    pub fn id(&self) -> io::Result<Id> {
        self.file.metadata().map(|m| (m.dev(), m.ino()))
    }

    /// The id of the namespace that the process with the directory `process` in /proc is in.
    pub fn id_of(process: &Path) -> io::Result<Id> {
        std::fs::metadata(process.join("ns/net")).map(|m| (m.dev(), m.ino()))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
