//! Checksums of files and of bytes on their way to standard output.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::task::spawn_blocking;

use crate::flags::{Checksum, HashKind};

const READ_BYTES: usize = 256 << 10;

/// One of the hash functions of `--checksum`.
pub(super) enum Hasher {
    Sha256(Box<Sha256>),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    pub(super) fn new(kind: HashKind) -> Self {
        match kind {
            HashKind::Sha256 => Self::Sha256(Box::default()),
            HashKind::Blake3 => Self::Blake3(Box::default()),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    pub(super) fn finish(self) -> Checksum {
        match self {
            Self::Sha256(hasher) => Checksum {
                kind: HashKind::Sha256,
                digest: hasher.finalize().into(),
            },
            Self::Blake3(hasher) => Checksum {
                kind: HashKind::Blake3,
                digest: hasher.finalize().into(),
            },
        }
    }
}

/// Computes the checksum of a whole file, on another thread. What is read back is what was written,
/// whichever mechanism wrote it.
pub(super) async fn of_file(file: Arc<File>, kind: HashKind) -> io::Result<Checksum> {
    let reading = spawn_blocking(move || {
        let mut hasher = Hasher::new(kind);
        let mut buffer = vec![0; READ_BYTES];
        let mut offset = 0;
        loop {
            match file.read_at(&mut buffer, offset) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(count) => {
                    hasher.update(&buffer[..count]);
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    });
    reading.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_digests_are_those_of_the_standards() {
        for (kind, sum) in [
            (
                HashKind::Sha256,
                "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                HashKind::Blake3,
                "blake3:6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
            ),
        ] {
            let mut hasher = Hasher::new(kind);
            hasher.update(b"a");
            hasher.update(b"bc");
            assert_eq!(hasher.finish().to_string(), sum);
        }
    }
}
