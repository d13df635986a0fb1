//! What a receiver has received.

use std::io;
use std::os::fd::AsFd;

use crate::arena::ChunkPart;

/// Bytes that were received: pages that the kernel has mapped into this process, and bytes that it
/// has copied, in the order of the stream.
///
/// Dropping the chunk, and everything made from its parts, gives the pages back to the kernel. As
/// long as a part exists, the connection stays open, even if its socket has been closed: shut the
/// socket down to tell the peer that the stream has ended.
///
/// A chunk can be [sent on](crate::Sender) and [written to a file](Self::write_at) without copying
/// it, and be [copied](Self::to_vec) to other memory. To read the bytes of a chunk in place, see
/// [`slices`](Self::slices).
///
/// ```
/// use std::net::{TcpListener, TcpStream};
/// use uncopied::{Receiver, Sender};
///
/// # use std::io::Write;
/// # let listener = TcpListener::bind("127.0.0.1:0")?;
/// # let mut peer = TcpStream::connect(listener.local_addr()?)?;
/// # let from = listener.accept()?.0;
/// # let _to_peer = TcpStream::connect(listener.local_addr()?)?;
/// # let to = listener.accept()?.0;
/// # peer.write_all(b"hello")?;
/// # drop(peer);
/// let mut receiver = Receiver::new(from);
/// let mut sender = Sender::new(to);
/// while let Some(chunk) = receiver.receive()? {
///     println!("{} bytes mapped, {} copied", chunk.mapped_bytes(), chunk.copied_bytes());
///     sender.send_parts(chunk)?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Chunk {
    parts: Vec<ChunkPart>,
}

impl Chunk {
    pub(super) fn new(parts: Vec<ChunkPart>) -> Self {
        Self { parts }
    }

    /// Returns the number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.iter().map(ChunkPart::len).sum()
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns how many of the bytes were mapped.
    #[must_use]
    pub fn mapped_bytes(&self) -> usize {
        let mapped = |part: &&ChunkPart| matches!(part, ChunkPart::Mapped(_));
        self.parts.iter().filter(mapped).map(ChunkPart::len).sum()
    }

    /// Returns how many of the bytes were copied.
    #[must_use]
    pub fn copied_bytes(&self) -> usize {
        self.len() - self.mapped_bytes()
    }

    /// Returns the parts, in the order of the stream.
    #[must_use]
    pub fn parts(&self) -> &[ChunkPart] {
        &self.parts
    }

    /// Copies the first bytes to `target`, as many as fit. Returns their number.
    pub fn copy_to_slice(&self, target: &mut [u8]) -> usize {
        let mut copied = 0;
        for part in &self.parts {
            copied += part.copy_to_slice(&mut target[copied..]);
        }
        copied
    }

    /// Copies the bytes to a vector.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        self.copy_to_slice(&mut bytes);
        bytes
    }

    /// Writes the bytes to a file, starting at `offset`, without copying them to other memory of
    /// this process first. The file's own position is neither used nor changed.
    ///
    /// A file that was opened with `O_DIRECT` accepts only whole blocks at offsets that are
    /// multiples of the block size. The mapped parts consist of whole pages, so they can be
    /// [written](ChunkPart::write_at) to such a file, as long as every part before them is a
    /// multiple of the block size, too.
    ///
    /// # Errors
    ///
    /// Those of `pwrite(2)`. Some bytes may have been written.
    pub fn write_at(&self, file: impl AsFd, mut offset: u64) -> io::Result<()> {
        for part in &self.parts {
            part.write_at(&file, offset)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Returns the bytes of each part as a slice.
    ///
    /// # Safety
    ///
    /// For as long as a slice is used, nobody may write to the mapped pages: see
    /// [`ReceivedPages::as_slice`](crate::arena::ReceivedPages::as_slice).
    #[allow(unsafe_code)]
    pub unsafe fn slices(&self) -> impl Iterator<Item = &[u8]> {
        // SAFETY: the caller vouches for the same.
        self.parts.iter().map(|part| unsafe { part.as_slice() })
    }
}

impl IntoIterator for Chunk {
    type Item = ChunkPart;
    type IntoIter = std::vec::IntoIter<ChunkPart>;

    fn into_iter(self) -> Self::IntoIter {
        self.parts.into_iter()
    }
}

impl<'a> IntoIterator for &'a Chunk {
    type Item = &'a ChunkPart;
    type IntoIter = std::slice::Iter<'a, ChunkPart>;

    fn into_iter(self) -> Self::IntoIter {
        self.parts.iter()
    }
}
