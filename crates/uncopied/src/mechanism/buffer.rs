//! The memory for bytes that are copied into a file, or between other descriptors.

use std::cell::Cell;

/// The size of the buffer: large enough that the system calls cost little compared with the copies,
/// and small enough that the bytes stay in a core's cache between the two copies.
pub(super) const BUFFER_BYTES: usize = 256 << 10;

/// The alignment of the buffer. Large memory from `malloc(3)` begins 16 bytes after the start of a
/// page. On an AMD EPYC, receiving into such a buffer has taken four times as long at times.
pub(super) const ALIGNMENT: usize = 4096;

thread_local! {
    /// A buffer that no transfer of this thread uses. New memory would cost a page fault for every
    /// page.
    static IDLE: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// Bytes that were received and not written yet: `memory[start..end]`. The memory is allocated only
/// while there are such bytes.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    memory: Option<Box<[u8]>>,
    /// The index of the first byte of `memory` that is used.
    base: usize,
    start: usize,
    end: usize,
}

impl Buffer {
    /// Returns the number of bytes.
    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Returns the bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        let memory = self.memory.as_deref().unwrap_or_default();
        &memory[self.start..self.end]
    }

    /// Returns memory for at most `want` bytes, which begins `skew` bytes after an
    /// [aligned](ALIGNMENT) address. There must be no bytes in the buffer.
    pub(super) fn spare(&mut self, want: usize, skew: usize) -> &mut [u8] {
        let skew = skew % ALIGNMENT;
        let idle = || IDLE.try_with(Cell::take).ok().flatten();
        let new = || vec![0; BUFFER_BYTES + ALIGNMENT].into_boxed_slice();
        let memory = self
            .memory
            .get_or_insert_with(|| idle().unwrap_or_else(new));
        self.base = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT) + skew;
        &mut memory[self.base..][..want.min(BUFFER_BYTES - skew)]
    }

    /// Records that the first `bytes` bytes of the [spare](Self::spare) memory were filled.
    pub(super) fn filled(&mut self, bytes: usize) {
        let len = self.memory.as_deref().unwrap_or_default().len();
        (self.start, self.end) = (self.base, len.min(self.base + bytes));
    }

    /// Removes the first bytes.
    pub(super) fn remove_first(&mut self, bytes: usize) {
        self.start += bytes.min(self.len());
    }

    /// Caches the memory for other transfers of this thread, if there are no bytes in it.
    pub(super) fn release_if_empty(&mut self) {
        if self.len() == 0
            && let Some(memory) = self.memory.take()
        {
            // Ignore a failure, which means that the thread is ending and has already destroyed its
            // cache.
            let _ = IDLE.try_with(|idle| idle.set(Some(memory)));
        }
    }
}
