//! The memory into which the next chunk is received.

use std::io;
use std::sync::Arc;

use crate::arena::{ChunkPart, FreeWindows, PageBuffer};
use crate::sys::SocketWindow;

/// If a chunk fills less than this part of the buffer, its bytes are copied to a smaller one, so
/// that a program that keeps many short chunks does not keep a whole buffer for each.
const MIN_FILLED_PART: usize = 4;

/// What has been received of the next chunk, and the memory for the rest of it.
#[derive(Debug)]
pub(crate) struct ChunkBuffer {
    /// The capacity of the buffer, and the length of the window.
    capacity: usize,
    window: Option<SocketWindow>,
    /// The memory for copied bytes. `None` until the first chunk is received.
    buffer: Option<PageBuffer>,
    /// The parts of the chunk, in the order of the stream.
    runs: Vec<Run>,
}

/// Consecutive bytes that were received in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    Mapped(usize),
    Copied(usize),
}

impl ChunkBuffer {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            window: None,
            buffer: None,
            runs: Vec::new(),
        }
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether nothing has been received.
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub(super) fn has_window(&self) -> bool {
        self.window.is_some()
    }

    /// Sets the window. There must be none.
    pub(super) fn set_window(&mut self, window: SocketWindow) {
        debug_assert!(self.window.is_none());
        self.window = Some(window);
    }

    /// Allocates the buffer, if there is none.
    pub(super) fn allocate(&mut self) -> io::Result<()> {
        if self.buffer.is_none() {
            self.buffer = Some(PageBuffer::with_capacity(self.capacity)?);
        }
        Ok(())
    }

    /// Whether a page can be mapped and bytes can be copied.
    pub(super) fn has_room(&self) -> bool {
        let page = rustix::param::page_size();
        let window = self.window.as_ref().map_or(0, SocketWindow::room);
        let buffer = self
            .buffer
            .as_ref()
            .map_or(0, |it| it.capacity() - it.len());
        window.min(buffer) >= page
    }

    /// Returns the memory for bytes that are copied next.
    pub(super) fn spare(&mut self) -> &mut [u8] {
        self.buffer.as_mut().map_or(&mut [], PageBuffer::spare_mut)
    }

    /// Returns the window.
    pub(super) fn window(&mut self) -> Option<&mut SocketWindow> {
        self.window.as_mut()
    }

    /// Counts bytes that were mapped.
    pub(super) fn add_mapped(&mut self, bytes: usize) {
        match self.runs.last_mut() {
            _ if bytes == 0 => {}
            Some(Run::Mapped(len)) => *len += bytes,
            _ => self.runs.push(Run::Mapped(bytes)),
        }
    }

    /// Counts bytes that were written to the [spare](Self::spare) memory.
    pub(super) fn add_copied(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        if let Some(buffer) = &mut self.buffer {
            buffer.set_len(buffer.len() + bytes);
        }
        match self.runs.last_mut() {
            Some(Run::Copied(len)) => *len += bytes,
            _ => self.runs.push(Run::Copied(bytes)),
        }
    }

    /// Returns the chunk, and begins the next one. The window comes back to `windows` once the
    /// parts are dropped.
    pub(super) fn take(&mut self, windows: &Arc<FreeWindows>) -> Vec<ChunkPart> {
        let is_mapped = self.window.as_ref().is_some_and(|it| it.mapped() > 0);
        let window = self.window.take_if(|_| is_mapped);
        let window = window.map(|window| windows.lease(window));
        let copied = match &mut self.buffer {
            Some(buffer) if buffer.is_empty() => None,
            Some(buffer) if buffer.len() < buffer.capacity() / MIN_FILLED_PART => {
                let smaller = PageBuffer::copy_from_slice(buffer);
                smaller.ok().inspect(|_| buffer.clear())
            }
            _ => None,
        };
        let is_filled = |buffer: &mut PageBuffer| !buffer.is_empty();
        let copied = copied.or_else(|| self.buffer.take_if(is_filled));
        let copied = copied.map(PageBuffer::freeze);
        let (mut mapped_at, mut copied_at) = (0, 0);
        let mut parts = Vec::with_capacity(self.runs.len());
        for run in self.runs.drain(..) {
            match run {
                Run::Mapped(len) => {
                    let part = window
                        .as_ref()
                        .map(|it| it.slice(mapped_at..mapped_at + len));
                    parts.extend(part.map(ChunkPart::Mapped));
                    mapped_at += len;
                }
                Run::Copied(len) => {
                    let part = copied
                        .as_ref()
                        .map(|it| it.slice(copied_at..copied_at + len));
                    parts.extend(part.map(ChunkPart::Copied));
                    copied_at += len;
                }
            }
        }
        parts
    }
}
