//! The buffers for requests.
//!
//! Idle connections have no buffer. A connection takes one from its thread when bytes arrive, and
//! gives it back when there is no request left in it. Of a head that has only partly arrived, the
//! connection keeps a copy of just that part, so that many clients that never complete their heads
//! do not take up a whole buffer each.

use std::cell::RefCell;

use super::request::{MAX_HEAD_BYTES, RefusedHead, Request, RequestHead, head_length};

/// The number of unused buffers that each thread keeps. Each takes 17 KiB.
const MAX_UNUSED: usize = 64;

thread_local! {
    #[expect(
        clippy::vec_box,
        reason = "connections own their buffers in boxes, which are moved in and out"
    )]
    static UNUSED: RefCell<Vec<Box<RequestBuffer>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes that have arrived, and the head of the request at their start.
pub(super) struct RequestBuffer {
    pub(super) bytes: Vec<u8>,
    head: RequestHead,
    /// The length of the head, or 0 if there is none.
    head_length: usize,
}

impl RequestBuffer {
    /// Returns a buffer that contains `bytes`.
    pub(super) fn take(bytes: &[u8]) -> Box<Self> {
        let unused = UNUSED.with_borrow_mut(Vec::pop);
        let mut buffer = unused.unwrap_or_else(|| {
            Box::new(Self {
                bytes: Vec::new(),
                head: RequestHead::empty(),
                head_length: 0,
            })
        });
        buffer.bytes.reserve(MAX_HEAD_BYTES);
        buffer.bytes.extend_from_slice(bytes);
        buffer
    }

    /// Frees the unused part of the buffer, for the time of a long response.
    pub(super) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
    }

    /// Gives the buffer back to the thread.
    pub(super) fn give_back(mut self: Box<Self>) {
        self.bytes.clear();
        self.head_length = 0;
        UNUSED.with_borrow_mut(|unused| {
            if unused.len() < MAX_UNUSED {
                unused.push(self);
            }
        });
    }

    /// Parses the head at the start of the buffer. Returns false if it is not complete.
    pub(super) fn parse(&mut self) -> Result<bool, RefusedHead> {
        match head_length(&self.bytes)? {
            Some(length) => {
                self.head.parse(&self.bytes[..length])?;
                self.head_length = length;
                Ok(true)
            }
            None if self.bytes.len() >= MAX_HEAD_BYTES => Err(RefusedHead::TooLarge),
            None => Ok(false),
        }
    }

    /// Returns the request whose head [`parse`](Self::parse) has found. `None` if it has found
    /// none, or one that is refused: then `head` may belong to other bytes.
    pub(super) fn request(&self) -> Option<Request<'_>> {
        (self.head_length > 0).then(|| Request {
            head: &self.head,
            bytes: &self.bytes[..self.head_length],
        })
    }

    /// Removes the head. What remains is the beginning of the next request.
    pub(super) fn remove_head(&mut self) {
        let length = std::mem::take(&mut self.head_length);
        self.bytes.drain(..length);
    }
}
