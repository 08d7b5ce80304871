//! A worker's buffers for relayed bytes.
//!
//! A buffer is taken when there are bytes to read and is usually back before the next connection runs, since
//! the bytes are written at once. Only a connection whose receiver does not keep up holds one, so that memory
//! follows the work in progress and not the number of connections.
//!
//! What connections hold is counted against the worker's budget. The more of it is used the less is read at once, but
//! never less than [`LEAST_READ_BYTES`]: a connection holds one read's worth in a direction at most, so that those who
//! wait stay within the budget and those who do not wait for each other always move on.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

/// Buffers kept for reuse by one worker.
const KEPT: usize = 4;

/// What is left over of a read is copied into a buffer of its own size up to here; more keeps the large buffer,
/// since copying would cost more than the memory.
const COPY_BELOW_BYTES: usize = 16 * 1024;
/// Unless the rest is less than this part of it: what is held is at most so many times what is used.
const LEAST_PART: usize = 4;

/// One read may take this part of what is left of the budget. Many such parts are held before the reads of others become
/// small, and however many there are, something is left.
const READ_PART: usize = 256;
/// What may be read, and held, in each direction of a connection even where the budget is used up.
pub const LEAST_READ_BYTES: usize = 4 * 1024;

/// A worker's pool, and its budget.
#[derive(Debug)]
pub struct Buffers {
    kept: RefCell<Vec<Box<[u8]>>>,
    /// The largest size that was asked for: all buffers have it, so that each serves every taker.
    size_bytes: Cell<usize>,
    budget_bytes: usize,
    /// By all that is [`Held`].
    held_bytes: Rc<Cell<usize>>,
}

impl Buffers {
    /// `budget_bytes`: how much all connections of the worker may hold, beside the least that each may.
    pub fn new(budget_bytes: usize) -> Self {
        Self {
            kept: RefCell::default(),
            size_bytes: Cell::default(),
            budget_bytes,
            held_bytes: Rc::default(),
        }
    }

    /// How many of `wanted` bytes may be read at once now.
    pub fn grant(&self, wanted: usize) -> usize {
        wanted.min((self.left_bytes() / READ_PART).max(LEAST_READ_BYTES))
    }

    /// How much may be held of what is not read here, and would be as much as `wanted`; `None`: no matter how much.
    pub fn bound(&self, wanted: usize) -> Option<usize> {
        self.is_scarce().then(|| self.grant(wanted))
    }

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
        if kept.len() < KEPT && buffer.len() >= self.size_bytes.get() {
            kept.push(buffer);
        }
    }

    /// Counts `bytes` that are held elsewhere.
    pub fn hold(&self, bytes: usize) -> Held {
        let mut held = Held {
            all: self.held_bytes.clone(),
            bytes: 0,
        };
        held.set(bytes);
        held
    }

    fn left_bytes(&self) -> usize {
        self.budget_bytes.saturating_sub(self.held_bytes.get())
    }

    /// Every byte counts: more than half of the budget is used.
    fn is_scarce(&self) -> bool {
        self.left_bytes() < self.budget_bytes / 2
    }
}

/// Bytes that count as held until this is dropped.
#[derive(Debug)]
pub struct Held {
    /// Of the worker.
    all: Rc<Cell<usize>>,
    bytes: usize,
}

impl Held {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// From now on it is so many.
    pub fn set(&mut self, bytes: usize) {
        let others = self.all.get().saturating_sub(self.bytes);
        self.all.set(others.saturating_add(bytes));
        self.bytes = bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Bytes that were read and could not yet be written.
#[derive(Debug, Default)]
pub struct Pending {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// The buffer; of what is empty nothing.
    held: Option<Held>,
}

impl Pending {
    /// A copy of bytes that came from elsewhere.
    pub fn copy_of(bytes: &[u8], pool: &Buffers) -> Self {
        if bytes.is_empty() {
            return Self::default();
        }
        Self {
            buffer: bytes.into(),
            start: 0,
            end: bytes.len(),
            held: Some(pool.hold(bytes.len())),
        }
    }

    /// Keeps `buffer[start..end]`; the buffer goes back to `pool` if that is cheaper.
    pub fn keep(buffer: Box<[u8]>, start: usize, end: usize, pool: &Buffers) -> Self {
        let mut kept = Self {
            buffer,
            start,
            end,
            held: None,
        };
        kept.shrink(pool);
        if kept.held.is_none() {
            kept.held = Some(pool.hold(kept.buffer.len()));
        }
        kept
    }

    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// `count` bytes were written; a buffer that is not needed for the rest goes back to `pool`.
    pub fn advance(&mut self, count: usize, pool: &Buffers) {
        self.start += count;
        if self.is_empty() {
            let done = std::mem::take(self);
            if done.buffer.len() > COPY_BELOW_BYTES {
                pool.give(done.buffer);
            }
        } else {
            self.shrink(pool);
        }
    }

    /// Copies the bytes into a buffer of their size where the one they are in is much too large.
    fn shrink(&mut self, pool: &Buffers) {
        let (used, size) = (self.end - self.start, self.buffer.len());
        let worth = match pool.is_scarce() {
            true => used < size,
            false => used <= COPY_BELOW_BYTES || used <= size / LEAST_PART,
        };
        // A small buffer's rest is not worth a copy for each write.
        if worth && size > COPY_BELOW_BYTES.max(used + LEAST_READ_BYTES) {
            let copy = Self::copy_of(self.bytes(), pool);
            let large = std::mem::replace(self, copy);
            pool.give(large.buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 256 * 1024;
    const PLENTY: usize = 1 << 30;

    #[test]
    fn leftovers_are_copied_small_and_kept_large() {
        let pool = Buffers::new(PLENTY);
        let size = 64 * 1024;
        let mut small = Pending::keep(pool.take(size), 10, 20, &pool);
        assert_eq!((small.bytes().len(), pool.kept.borrow().len()), (10, 1));
        small.advance(10, &pool);
        assert!(small.is_empty());
        assert_eq!(pool.kept.borrow().len(), 1, "the copy is not worth keeping");
        let mut large = Pending::keep(pool.take(size), 0, size, &pool);
        assert_eq!(pool.kept.borrow().len(), 0);
        large.advance(size, &pool);
        assert_eq!(pool.kept.borrow().len(), 1);
    }

    #[test]
    fn a_rest_does_not_keep_a_large_buffer() {
        let pool = Buffers::new(PLENTY);
        let mut buffer = pool.take(SIZE);
        for (byte, number) in buffer.iter_mut().zip(0_usize..) {
            *byte = number as u8;
        }
        let mut pending = Pending::keep(buffer, 0, SIZE, &pool);
        assert_eq!(pool.held_bytes.get(), SIZE);
        pending.advance(SIZE / 2, &pool);
        assert_eq!(pool.held_bytes.get(), SIZE, "half of it is used");
        pending.advance(SIZE / 4, &pool);
        assert_eq!(pool.held_bytes.get(), SIZE / 4);
        let rest = 16;
        pending.advance(SIZE / 4 - rest, &pool);
        assert_eq!(pool.held_bytes.get(), rest);
        let last: Vec<u8> = (SIZE - rest..SIZE).map(|number| number as u8).collect();
        assert_eq!(pending.bytes(), last);
        drop(pending);
        assert_eq!(pool.held_bytes.get(), 0);
    }

    #[test]
    fn those_who_wait_stay_within_the_budget() {
        let budget = 64 << 20;
        let pool = Buffers::new(budget);
        let mut waiting = Vec::new();
        let mut least = 0;
        while least < 1000 {
            let read = pool.grant(SIZE);
            assert!((LEAST_READ_BYTES..=SIZE).contains(&read));
            least += usize::from(read == LEAST_READ_BYTES);
            waiting.push(Pending::keep(pool.take(SIZE), 0, read, &pool));
        }
        assert_eq!(
            waiting[0].bytes().len(),
            SIZE,
            "the first has what it asks for"
        );
        let held = pool.held_bytes.get();
        assert!(held <= budget + 1000 * LEAST_READ_BYTES, "{held}");
        assert!(waiting.len() > 1200, "{} hold all of it", waiting.len());
        drop(waiting);
        assert_eq!((pool.held_bytes.get(), pool.grant(SIZE)), (0, SIZE));
    }

    #[test]
    fn where_memory_is_scarce_buffers_fit_what_they_hold() {
        let pool = Buffers::new(4 * SIZE);
        let first = [(); 3].map(|()| Pending::keep(pool.take(SIZE), 0, SIZE, &pool));
        let held = pool.held_bytes.get();
        assert_eq!(held, 3 * SIZE);
        let rest = SIZE / 2;
        let second = Pending::keep(pool.take(SIZE), SIZE - rest, SIZE, &pool);
        assert_eq!(pool.held_bytes.get() - held, rest);
        drop((first, second));
    }
}
