//! Giving back memory that the allocator keeps.

/// Returns free pages of the heap to the kernel. glibc keeps what was freed below something that is still in use; reading
/// the kernel's BTF at start, or a burst of connections, leaves many megabytes so. Other C libraries give back by themselves.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer; it may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
