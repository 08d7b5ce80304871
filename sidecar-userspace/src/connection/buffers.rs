//! A worker's buffers for relayed bytes.
//!
//! A buffer is taken when there are bytes to read and is usually back before the next connection runs, since
//! the bytes are written at once. Only a connection whose receiver does not keep up holds one, so that memory
//! follows the work in progress and not the number of connections.

use std::cell::{Cell, RefCell};

/// Buffers kept for reuse by one worker.
const KEPT: usize = 4;

/// What is left over of a read is copied into a buffer of its own size up to here; more keeps the large buffer,
/// since copying would cost more than the memory.
const COPY_BELOW_BYTES: usize = 16 * 1024;

/// A worker's pool.
#[derive(Debug, Default)]
pub struct Buffers {
    kept: RefCell<Vec<Box<[u8]>>>,
    /// The largest size that was asked for: all buffers have it, so that each serves every taker.
    size_bytes: Cell<usize>,
}

impl Buffers {
    /// A buffer of at least `bytes`, its content undefined but initialised.
    pub fn take(&self, bytes: usize) -> Box<[u8]> {
        let size = self.size_bytes.get().max(bytes);
        self.size_bytes.set(size);
        match self.kept.borrow_mut().pop() {
            Some(buffer) if buffer.len() >= bytes => buffer,
            _ => vec![0; size].into_boxed_slice(),
        }
    }

    pub fn give(&self, buffer: Box<[u8]>) {
        let mut kept = self.kept.borrow_mut();
        if kept.len() < KEPT {
            kept.push(buffer);
        }
    }
}

/// Bytes that were read and could not yet be written.
#[derive(Debug, Default)]
pub struct Pending {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Pending {
    /// A copy of bytes that came from elsewhere.
    pub fn copy_of(bytes: &[u8]) -> Self {
        Self {
            buffer: bytes.into(),
            start: 0,
            end: bytes.len(),
        }
    }

    /// Keeps `buffer[start..end]`; the buffer goes back to `pool` if that is cheaper.
    pub fn keep(buffer: Box<[u8]>, start: usize, end: usize, pool: &Buffers) -> Self {
        let kept = Self { buffer, start, end };
        if end - start > COPY_BELOW_BYTES {
            return kept;
        }
        let copy = Self::copy_of(kept.bytes());
        pool.give(kept.buffer);
        copy
    }

    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// `count` bytes were written; an emptied buffer that is worth it goes back to `pool`.
    pub fn advance(&mut self, count: usize, pool: &Buffers) {
        self.start += count;
        if self.is_empty() {
            let done = std::mem::take(self);
            if done.buffer.len() > COPY_BELOW_BYTES {
                pool.give(done.buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_copied_small_and_kept_large() {
        let pool = Buffers::default();
        let size = 64 * 1024;
        let mut small = Pending::keep(pool.take(size), 10, 20, &pool);
        assert_eq!((small.bytes().len(), pool.kept.borrow().len()), (10, 1));
        small.advance(10, &pool);
        assert!(small.is_empty());
        assert_eq!(pool.kept.borrow().len(), 1, "the copy is not worth keeping");
        let mut large = Pending::keep(pool.take(size), 0, size, &pool);
        assert_eq!(pool.kept.borrow().len(), 0);
        large.advance(size - 1, &pool);
        assert_eq!(large.bytes().len(), 1);
        large.advance(1, &pool);
        assert_eq!(pool.kept.borrow().len(), 1);
    }
}
