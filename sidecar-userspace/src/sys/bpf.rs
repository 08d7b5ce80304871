//! bpf(2) where aya does not reach: links that it does not let anybody pin, and what is pinned or attached already.

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
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_GET_NEXT_ID: libc::c_int = 11;
const BPF_MAP_GET_NEXT_ID: libc::c_int = 12;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_GET_NEXT_ID: libc::c_int = 31;

/// `BPF_CGROUP_INET_EGRESS`
pub const INET_EGRESS: u32 = 1;
/// `BPF_CGROUP_INET4_CONNECT`
pub const INET4_CONNECT: u32 = 10;
/// `BPF_CGROUP_INET6_CONNECT`
pub const INET6_CONNECT: u32 = 11;
/// `BPF_CGROUP_UDP4_SENDMSG`
pub const UDP4_SENDMSG: u32 = 14;
/// `BPF_CGROUP_UDP6_SENDMSG`
pub const UDP6_SENDMSG: u32 = 15;
/// `BPF_TCX_EGRESS`
pub const TCX_EGRESS: u32 = 47;
/// `BPF_CGROUP_GETSOCKOPT`
pub const GETSOCKOPT: u32 = 21;
/// `BPF_CGROUP_SETSOCKOPT`
pub const SETSOCKOPT: u32 = 22;

/// `BPF_F_REPLACE`: only if the former program is the one that is named.
const REPLACE: u32 = 4;

/// What the kernel numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Link,
    Program,
    Map,
}

/// `link_create` of `union bpf_attr`, as far as it is used.
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// `link_update` of `union bpf_attr`.
#[repr(C)]
struct LinkUpdate {
    link: u32,
    new_program: u32,
    flags: u32,
    old_program: u32,
}

/// The commands on pinned objects of `union bpf_attr`, as far as they are used.
#[repr(C)]
struct ObjectPin {
    path: u64,
    object: u32,
    flags: u32,
}

/// `BPF_MAP_TYPE_HASH`
const HASH: u32 = 1;
/// `BPF_MAP_TYPE_ARRAY_OF_MAPS`
const ARRAY_OF_MAPS: u32 = 12;

/// `map_create` of `union bpf_attr`, as far as it is used.
#[repr(C)]
struct MapCreate {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; 16],
}

/// The commands on elements of maps of `union bpf_attr`.
#[repr(C)]
struct Element {
    map: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `info` of `union bpf_attr`.
#[repr(C)]
struct ObjectInfo {
    object: u32,
    length: u32,
    info: u64,
}

/// The beginning of `struct bpf_link_info`.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program_id: u32,
    _pad: u32,
}

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
}

/// Attaches a program to an interface of the calling thread's network namespace, from Linux 6.6 on (`EINVAL` before).
pub fn link_to_interface(
    program: &impl AsFd,
    interface: u32,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let attributes = LinkCreate {
        program: number(program),
        target: interface,
        attach_type,
        flags: 0,
    };
    // SAFETY: the command takes these attributes and makes a descriptor.
    unsafe { descriptor(call(BPF_LINK_CREATE, attributes)) }
}

/// Attaches a program to a cgroup; it stays attached while the link is open or pinned.
pub fn link_to_cgroup(
    program: &impl AsFd,
    cgroup: &impl AsFd,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let attributes = LinkCreate {
        program: number(program),
        target: number(cgroup),
        attach_type,
        flags: 0,
    };
    // SAFETY: the command takes these attributes and makes a descriptor.
    unsafe { descriptor(call(BPF_LINK_CREATE, attributes)) }
}

/// Puts `new` in the place of `old` at once: there is no moment with neither. Fails if the link has another program.
pub fn update_link(link: &impl AsFd, new: &impl AsFd, old: &impl AsFd) -> io::Result<()> {
    let attributes = LinkUpdate {
        link: number(link),
        new_program: number(new),
        flags: REPLACE,
        old_program: number(old),
    };
    // SAFETY: the command takes these attributes.
    unsafe { call(BPF_LINK_UPDATE, attributes) }.map(drop)
}

/// The id of the program that a link attaches.
pub fn program_of_link(link: &impl AsFd) -> io::Result<u32> {
    Ok(info::<LinkInfo>(link)?.program_id)
}

/// The id of a program.
pub fn program_id(program: &impl AsFd) -> io::Result<u32> {
    Ok(info::<ProgramInfo>(program)?.id)
}

/// The program with an id.
pub fn program(id: u32) -> io::Result<OwnedFd> {
    // Three more words may follow; they are zero.
    // SAFETY: the command takes an id and makes a descriptor.
    unsafe { descriptor(call(BPF_PROG_GET_FD_BY_ID, [id, 0, 0])) }
}

/// The ids of all that there are of a kind. Opens none of them: an array of programs that is opened and closed while the
/// kernel clears it, since its last user has gone, is never freed (`prog_array_map_clear` takes a reference each time, and
/// its work, which gives it back, runs once).
pub fn ids(kind: Kind) -> Vec<u32> {
    let command = match kind {
        Kind::Link => BPF_LINK_GET_NEXT_ID,
        Kind::Program => BPF_PROG_GET_NEXT_ID,
        Kind::Map => BPF_MAP_GET_NEXT_ID,
    };
    let next = |after: u32| {
        // The id, the next one, and flags.
        let mut numbers = [after, 0, 0];
        // SAFETY: the command takes these attributes, and writes the second of them.
        unsafe { call_with(command, &mut numbers) }.ok()?;
        Some(numbers[1])
    };
    std::iter::successors(next(0), |id| next(*id)).collect()
}

/// A new hash map that knows no types of what it holds.
pub fn hash_map(
    key_bytes: usize,
    value_bytes: usize,
    entries: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let bytes = |bytes: usize| u32::try_from(bytes).map_err(io::Error::other);
    let attributes = MapCreate {
        kind: HASH,
        key_bytes: bytes(key_bytes)?,
        value_bytes: bytes(value_bytes)?,
        entries,
        flags,
        inner_map: 0,
        numa_node: 0,
        name: [0; 16],
    };
    // SAFETY: the command takes these attributes and makes a descriptor.
    unsafe { descriptor(call(BPF_MAP_CREATE, attributes)) }
}

/// A new array of `entries` maps, each of which has to be made like `template`.
pub fn array_of_maps(name: &str, template: &impl AsFd, entries: u32) -> io::Result<OwnedFd> {
    let mut short = [0; 16];
    // The last byte stays 0.
    for (to, from) in short.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    let attributes = MapCreate {
        kind: ARRAY_OF_MAPS,
        key_bytes: 4,
        value_bytes: 4,
        entries,
        flags: 0,
        inner_map: number(template),
        numa_node: 0,
        name: short,
    };
    // SAFETY: the command takes these attributes and makes a descriptor.
    unsafe { descriptor(call(BPF_MAP_CREATE, attributes)) }
}

/// Gives an object, such as a link, a name on bpffs, which keeps it.
pub fn pin(link: &impl AsFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = ObjectPin {
        path: path.as_ptr() as u64,
        object: number(link),
        flags: 0,
    };
    // SAFETY: the command takes these attributes; the path is live during the call.
    unsafe { call(BPF_OBJ_PIN, attributes) }.map(drop)
}

/// What is pinned at `path`.
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = ObjectPin {
        path: path.as_ptr() as u64,
        object: 0,
        flags: 0,
    };
    // SAFETY: the command takes these attributes and makes a descriptor; the path is live during the call.
    unsafe { descriptor(call(BPF_OBJ_GET, attributes)) }
}

/// The id of the program in a place of a `BPF_MAP_TYPE_PROG_ARRAY`, if there is one.
pub fn program_in(map: &impl AsFd, index: u32) -> io::Result<Option<u32>> {
    let mut id = 0_u32;
    let attributes = element(map, &index, &raw mut id);
    // SAFETY: the command takes these attributes, and writes the map's value, which has 4 bytes, to `id`.
    match unsafe { call(BPF_MAP_LOOKUP_ELEM, attributes) } {
        Ok(_) => Ok(Some(id)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts a program there, in place of another one at once; `None`: takes it away.
pub fn put_program(map: &impl AsFd, index: u32, program: Option<&OwnedFd>) -> io::Result<()> {
    let mut fd = program.map_or(0, number);
    let attributes = element(map, &index, &raw mut fd);
    let command = match program {
        Some(_) => BPF_MAP_UPDATE_ELEM,
        None => BPF_MAP_DELETE_ELEM,
    };
    // SAFETY: the command takes these attributes, and reads 4 bytes of key and value.
    match unsafe { call(command, attributes) } {
        Err(error) if program.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map(drop),
    }
}

fn element(map: &impl AsFd, index: &u32, value: *mut u32) -> Element {
    Element {
        map: number(map),
        _pad: 0,
        key: std::ptr::from_ref(index) as u64,
        value: value as u64,
        flags: 0,
    }
}

/// `T`: the beginning of the structure for the type of `object`, of plain numbers.
fn info<T: Default>(object: &impl AsFd) -> io::Result<T> {
    let mut info = T::default();
    let attributes = ObjectInfo {
        object: number(object),
        length: size_of::<T>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: the command takes these attributes, and writes no more than `length` bytes to `info`.
    unsafe { call(BPF_OBJ_GET_INFO_BY_FD, attributes) }?;
    Ok(info)
}

fn number(object: &impl AsFd) -> u32 {
    u32::try_from(object.as_fd().as_raw_fd()).unwrap_or(u32::MAX)
}

/// # Safety
/// `attributes` are those of the command, and what they point to is live and of the size that the command needs.
unsafe fn call<T>(command: libc::c_int, mut attributes: T) -> io::Result<libc::c_long> {
    // SAFETY: the caller's.
    unsafe { call_with(command, &mut attributes) }
}

/// As [`call`], of a command that answers in its attributes.
///
/// # Safety
/// As of [`call`].
unsafe fn call_with<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are live, initialised and of the size that is given; the kernel keeps no pointer, and
    // writes at most to them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    match result {
        result if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// # Safety
/// `made` is a descriptor that the kernel has just made for us, and nobody else knows it.
unsafe fn descriptor(made: io::Result<libc::c_long>) -> io::Result<OwnedFd> {
    let fd = i32::try_from(made?).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the caller's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
