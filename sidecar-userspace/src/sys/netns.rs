//! Network namespaces: ours, a process's and a socket's.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
    thread,
};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with},
    thread::{LinkNameSpaceType, move_into_link_name_space},
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

    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            cookie: self.cookie,
        })
    }

    /// Whether it is the one that the machine started with: the kernel numbers it first (`net_ns_init`).
    pub fn is_initial(&self) -> bool {
        self.cookie == 1
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

/// Runs `work` in a network namespace, on a thread of its own, which never comes back from there.
pub fn within<T: Send>(
    namespace: &impl AsFd,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let namespace = namespace.as_fd();
    thread::scope(|scope| {
        let work = scope.spawn(move || {
            move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
            work()
        });
        let panicked = |_| Err(io::Error::other("the thread panicked"));
        work.join().unwrap_or_else(panicked)
    })
}

/// The interfaces of a network namespace, to be listed again and again.
#[derive(Debug)]
pub struct Interfaces {
    /// What /proc shows of them to a thread of the namespace.
    devices: File,
    /// A socket of the namespace, to ask by.
    socket: OwnedFd,
}

impl Interfaces {
    pub fn of(namespace: &impl AsFd) -> io::Result<Self> {
        within(namespace, || {
            let (family, kind) = (AddressFamily::INET, SocketType::DGRAM);
            Ok(Self {
                devices: File::open("/proc/thread-self/net/dev")?,
                socket: socket_with(family, kind, SocketFlags::CLOEXEC, None)?,
            })
        })
    }

    /// The indices of all but the loopback interface.
    pub fn indices(&self) -> io::Result<BTreeSet<u32>> {
        let mut listed = Vec::new();
        let mut part = [0; 4096];
        loop {
            match self.devices.read_at(&mut part, listed.len() as u64)? {
                0 => break,
                length => listed.extend_from_slice(part.get(..length).unwrap_or_default()),
            }
        }
        let listed = String::from_utf8_lossy(&listed);
        // Two lines of headings.
        let names = listed
            .lines()
            .skip(2)
            .filter_map(|line| line.split_once(':'));
        let names = names
            .map(|(name, _)| name.trim())
            .filter(|name| *name != "lo");
        // One that has just gone has no index.
        let indices = names.filter_map(|name| netdevice::name_to_index(&self.socket, name).ok());
        Ok(indices.collect())
    }

    pub fn namespace(&self) -> io::Result<Namespace> {
        Namespace::of_socket(&self.socket)
    }
}
