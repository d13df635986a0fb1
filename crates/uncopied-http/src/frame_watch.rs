//! Tells a stream when code has read bytes of a mapped file that the file no longer had.
//!
//! The frames of a [`FileBody`](crate::FileBody) can be slices of a mapped file. The stream sends
//! those from the file. But an I/O object or a layer in between may read a frame, and pass on what
//! it read: `tokio::io::BufWriter` copies short slices, for example. If the file has been truncated
//! by then, such code reads zeroes ([`MissingBytes`]), and the peer must not get them in place of
//! the file's bytes. So the stream of a connection knows the frames that were made for it, and once
//! missing bytes of one of them have been read, it sends nothing more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use uncopied::arena::MissingBytes;

/// The slices of mapped files that exist for one connection. Clones share the state.
#[derive(Clone, Debug, Default)]
pub(crate) struct FrameWatch(Arc<Mutex<Watched>>);

#[derive(Debug, Default)]
struct Watched {
    /// The records of the frames that still exist, one for each frame.
    frames: Vec<MissingBytes>,
    /// Whether missing bytes were read of a file to which a dropped frame belonged.
    were_missing_bytes_read: bool,
}

impl FrameWatch {
    /// Returns a frame that is watched for as long as it, or a slice of it, exists. `bytes` are
    /// bytes of a mapping that uses this `record`.
    pub(crate) fn watch(&self, bytes: Bytes, record: &MissingBytes) -> Bytes {
        self.lock().frames.push(record.clone());
        Bytes::from_owner(WatchedFrame {
            bytes,
            record: record.clone(),
            watch: self.clone(),
        })
    }

    /// Whether no missing byte can have been read through a frame.
    ///
    /// The record of a mapping is shared by everything that uses the file. So after a truncation,
    /// this may also return false because other code has read the missing bytes.
    pub(crate) fn is_intact(&self) -> bool {
        let watched = self.lock();
        let were_read = watched.frames.iter().any(MissingBytes::were_read);
        !(watched.were_missing_bytes_read || were_read)
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        // A poisoned lock may still be used: no statement that may panic comes between two changes
        // that belong together.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct WatchedFrame {
    bytes: Bytes,
    record: MissingBytes,
    watch: FrameWatch,
}

impl AsRef<[u8]> for WatchedFrame {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for WatchedFrame {
    fn drop(&mut self) {
        let mut watched = self.watch.lock();
        watched.were_missing_bytes_read |= self.record.were_read();
        let is_this = |record: &MissingBytes| record.is_same(&self.record);
        if let Some(at) = watched.frames.iter().position(is_this) {
            watched.frames.swap_remove(at);
        }
    }
}
