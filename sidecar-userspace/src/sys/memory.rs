//! Giving back memory that is not needed any more: what the allocator keeps, and pages of the program that only its start used.

use std::{fs, io, ops::Range, os::unix::fs::MetadataExt};

use rustix::mm::{Advice, madvise};

/// Returns free pages of the heap to the kernel. glibc keeps what was freed below something that is still in use; reading
/// the kernel's BTF at start, or a burst of connections, leaves many megabytes so. Other C libraries give back by themselves.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer; it may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Unmaps the pages of the program's file, its code most of all. Those that are used come back with the next access, out of the
/// page cache; the parsers of command line, configuration and BTF do not.
pub fn forget_program() -> io::Result<()> {
    let program = fs::metadata("/proc/self/exe")?.ino();
    for pages in unchanged(&fs::read_to_string("/proc/self/smaps")?, program) {
        let start = pages.start as *mut _;
        // SAFETY: the range is a mapping of a file, read-only, none of whose pages was changed in memory (`unchanged`). The kernel
        // drops nothing but page table entries there, and an access finds the same bytes in the file.
        unsafe { madvise(start, pages.len(), Advice::LinuxDontNeed) }?;
    }
    Ok(())
}

/// The mappings of the file `inode` in the text of /proc/PID/smaps that cannot be written to and of which every page is the file's own. Not
/// those with pages that were changed: relocated constants, and code with a debugger's breakpoint or an uprobe in it.
fn unchanged(smaps: &str, inode: u64) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        if let Some(mapping) = Mapping::parse(line) {
            let wanted = mapping.inode == inode && !mapping.writable;
            current = wanted.then_some(mapping.pages);
        } else if line.starts_with("Anonymous:") && line.ends_with(" 0 kB") {
            found.extend(current.take());
        }
    }
    found
}

/// The first line of a mapping: `55d0c0-55d0d0 r-xp 00000000 fe:00 1234   /usr/bin/sidecar`.
struct Mapping {
    pages: Range<usize>,
    writable: bool,
    inode: u64,
}

impl Mapping {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let rights = words.next()?;
        let inode = words.nth(2)?;
        Some(Self {
            pages: usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?,
            writable: rights.contains('w'),
            inode: inode.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
1000-2000 r--p 00000000 fe:00 7                          /bin/program
Rss:                   4 kB
Anonymous:             0 kB
VmFlags: rd mr mw me sd
2000-5000 r-xp 00001000 fe:00 7                          /bin/program
Anonymous:             0 kB
5000-6000 r--p 00004000 fe:00 7                          /bin/program
Anonymous:             4 kB
6000-7000 rw-p 00005000 fe:00 7                          /bin/program
Anonymous:             0 kB
7000-9000 r-xp 00000000 fe:00 8                          /lib/libc.so.6
Anonymous:             0 kB
9000-a000 rw-p 00000000 00:00 0                          [heap]
Anonymous:             0 kB
";

    #[test]
    fn only_the_programs_own_unchanged_pages_are_forgotten() {
        assert_eq!(unchanged(SMAPS, 7), [0x1000..0x2000, 0x2000..0x5000]);
    }

    #[test]
    fn a_program_runs_on_without_its_pages() {
        forget_program().unwrap();
        forget_program().unwrap();
    }
}
