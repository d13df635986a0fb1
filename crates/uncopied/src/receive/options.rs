//! The options of a receiver.

use crate::policy::{Mechanism, Plan};

/// The options of a [`Receiver`](crate::Receiver).
#[derive(Clone, Debug)]
pub struct ReceiveOptions {
    pub(crate) forced: Option<Plan>,
    pub(crate) chunk_bytes: usize,
    pub(crate) max_windows: usize,
    pub(crate) low_water_mark: Option<usize>,
}

impl Default for ReceiveOptions {
    fn default() -> Self {
        Self {
            forced: None,
            chunk_bytes: 256 << 10,
            max_windows: 64,
            low_water_mark: None,
        }
    }
}

impl ReceiveOptions {
    /// The longest chunk, in bytes: 64 MiB.
    pub const MAX_CHUNK_BYTES: usize = 64 << 20;

    /// Forces these mechanisms, in this order, and no others. If none of them is supported,
    /// receiving fails. If the list is empty, [`plan_receive`](crate::policy::plan_receive) chooses
    /// the mechanisms.
    ///
    /// While zero-copy receiving is [switched off](crate::set_zero_copy_receive), this list is
    /// ignored.
    #[must_use]
    pub fn force_mechanisms(mut self, mechanisms: &[Mechanism]) -> Self {
        self.forced = (!mechanisms.is_empty()).then(|| Plan::of(mechanisms));
        self
    }

    /// Sets how many bytes of a chunk are mapped at most, and how many are copied at most. The
    /// default is 256 KiB. The value is rounded up to a power of two that is at least a page, and
    /// at most [`MAX_CHUNK_BYTES`](Self::MAX_CHUNK_BYTES).
    ///
    /// A receiver keeps a buffer of this length, and, once it has mapped bytes, ranges of addresses
    /// of this length, to which the kernel gives memory only while bytes are mapped there.
    #[must_use]
    pub fn chunk_bytes(mut self, bytes: usize) -> Self {
        let page = rustix::param::page_size();
        let bytes = bytes.clamp(page, Self::MAX_CHUNK_BYTES);
        self.chunk_bytes = bytes.next_power_of_two();
        self
    }

    /// Sets how many chunks with mapped bytes the program may hold while it receives another. The
    /// default is 64: 16 MiB, if chunks have the default length, which is what a sender may have in
    /// flight. A chunk that was sent on is held until its send is complete.
    ///
    /// While this number is held, the bytes of the next chunks are copied, and the report gives
    /// `ENOBUFS` as the reason.
    ///
    /// The limit protects the machine: the kernel does not count mapped pages as memory of the
    /// socket or of the process, so a peer could make a program that holds chunks use any amount.
    #[must_use]
    pub fn max_held_chunks(mut self, chunks: usize) -> Self {
        self.max_windows = chunks;
        self
    }

    /// Makes the receiver wait until at least this many bytes have arrived or the stream ends
    /// (`SO_RCVLOWAT`, `socket(7)`). With longer chunks, more bytes are mapped per call. The
    /// default is not to change the option of the socket, which is 1 byte by default.
    ///
    /// Use this only if you know that this number of bytes will come: a receiver that waits for
    /// more than the peer sends waits for ever. It waits for no more than
    /// [a chunk](Self::chunk_bytes), and the kernel for no more than half of the largest receive
    /// buffer. If the socket has a receive timeout, fewer bytes are returned when it expires.
    ///
    /// The option belongs to the socket, and stays set when the receiver is dropped. It also
    /// affects other code that waits for the socket, such as `poll(2)` and `read(2)`.
    #[must_use]
    pub fn low_water_mark(mut self, bytes: usize) -> Self {
        self.low_water_mark = Some(bytes);
        self
    }
}
