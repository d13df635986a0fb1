//! Generates bytes that do not repeat, so that a comparison with the bytes received detects
//! missing, duplicated and shifted parts, and makes that comparison.

/// Returns `size` pseudo-random bytes. The size seeds the generator, so sequences of different
/// sizes already differ in their first bytes. A comparison therefore also detects that the bytes of
/// another size were sent.
#[must_use]
pub fn bytes(size: u64) -> Vec<u8> {
    numbered_bytes(size, 0)
}

/// Like [`bytes()`], but sequences with different numbers, too, differ in their first 8 bytes.
#[must_use]
pub fn numbered_bytes(size: u64, number: u32) -> Vec<u8> {
    first_bytes(size, number, size as usize)
}

/// Returns the first `len` bytes of those that [`numbered_bytes`] returns. If there are fewer than
/// `len`, they are followed by others.
#[must_use]
pub fn first_bytes(size: u64, number: u32, len: usize) -> Vec<u8> {
    let mut state = seed(size, number);
    let words = len.div_ceil(8);
    let mut bytes = Vec::with_capacity(words * 8);
    for _ in 0..words {
        state = next(state);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Compares the beginning of a stream, which consists of the same bytes over and over, with what
/// was sent.
#[derive(Debug)]
pub struct Verifier {
    expected: Vec<u8>,
    /// How many bytes of the stream were compared.
    verified: u64,
    /// How many bytes of the stream are to be compared.
    limit: u64,
}

/// Bytes that differ from those that were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes after {after} differ from those that were sent")]
pub struct Mismatch {
    /// How many bytes of the stream had been compared. The difference is in the part after them.
    pub after: u64,
}

impl Verifier {
    /// Compares the first `limit` bytes of a stream that consists of `expected` over and over.
    #[must_use]
    pub fn new(expected: Vec<u8>, limit: u64) -> Self {
        Self {
            expected,
            verified: 0,
            limit,
        }
    }

    /// How many bytes are still to be compared.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.limit - self.verified
    }

    /// Compares the next part of the stream. Does not look at bytes after the limit.
    ///
    /// # Errors
    ///
    /// [`Mismatch`] if the bytes differ.
    pub fn check(&mut self, part: &[u8]) -> Result<(), Mismatch> {
        let wanted = usize::try_from(self.remaining()).unwrap_or(usize::MAX);
        let mut rest = &part[..part.len().min(wanted)];
        let after = self.verified;
        while !rest.is_empty() {
            // Less than the length of a slice.
            let position = (self.verified % self.expected.len() as u64) as usize;
            let expected = &self.expected[position..];
            let len = rest.len().min(expected.len());
            if rest[..len] != expected[..len] {
                return Err(Mismatch { after });
            }
            self.verified += len as u64;
            rest = &rest[len..];
        }
        Ok(())
    }
}

/// Returns the first 8 of the bytes that [`numbered_bytes`] returns if `size` is at least 8.
#[must_use]
pub fn numbered_start(size: u64, number: u32) -> [u8; 8] {
    next(seed(size, number)).to_le_bytes()
}

fn seed(size: u64, number: u32) -> u64 {
    0x9e37_79b9_7f4a_7c15 ^ size ^ (u64::from(number) << 32)
}

/// The next state of xorshift64. Different states have different successors.
fn next(mut state: u64) -> u64 {
    state ^= state << 13;
    state ^= state >> 7;
    state ^ (state << 17)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_stream_is_compared() {
        let sent = bytes(1000);
        let twice = [&sent[..], &sent[..]].concat();
        let mut verifier = Verifier::new(sent.clone(), 1500);
        for part in twice.chunks(300) {
            assert_eq!(verifier.check(part), Ok(()));
        }
        assert_eq!(verifier.remaining(), 0);
        assert_eq!(verifier.check(b"anything"), Ok(()));

        let mut verifier = Verifier::new(sent.clone(), 1500);
        assert_eq!(verifier.check(&sent), Ok(()));
        assert_eq!(verifier.check(&sent[1..]), Err(Mismatch { after: 1000 }));
        assert_eq!(verifier.remaining(), 500);
    }

    #[test]
    fn numbers_and_sizes_change_the_first_bytes() {
        let start = numbered_start(100, 7);
        assert_eq!(numbered_bytes(100, 7)[..8], start);
        assert_ne!(numbered_start(100, 8), start);
        assert_ne!(numbered_start(101, 7), start);
        assert_eq!(bytes(100), numbered_bytes(100, 0));
        assert_eq!(first_bytes(100, 7, 9), numbered_bytes(100, 7)[..9]);
        assert_eq!(numbered_bytes(3, 7), numbered_start(3, 7)[..3]);
    }
}
