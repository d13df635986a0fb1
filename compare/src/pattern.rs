//! Generates bytes that do not repeat, so that a comparison with the bytes received detects
//! missing, duplicated and shifted parts.

/// Returns `size` pseudo-random bytes. The size seeds the generator, so sequences of different
/// sizes already differ in their first bytes. A comparison therefore also detects that the bytes of
/// another size were sent.
pub(crate) fn bytes(size: u64) -> Vec<u8> {
    numbered_bytes(size, 0)
}

/// Like [`bytes()`], but sequences with different numbers, too, differ in their first 8 bytes.
pub(crate) fn numbered_bytes(size: u64, number: u32) -> Vec<u8> {
    let mut state = seed(size, number);
    let words = (size as usize).div_ceil(8);
    let mut bytes = Vec::with_capacity(words * 8);
    for _ in 0..words {
        state = next(state);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size as usize);
    bytes
}

/// Returns the first 8 of the bytes that [`numbered_bytes`] returns if `size` is at least 8.
pub(crate) fn numbered_start(size: u64, number: u32) -> [u8; 8] {
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
    fn numbers_and_sizes_change_the_first_bytes() {
        let start = numbered_start(100, 7);
        assert_eq!(numbered_bytes(100, 7)[..8], start);
        assert_ne!(numbered_start(100, 8), start);
        assert_ne!(numbered_start(101, 7), start);
        assert_eq!(bytes(100), numbered_bytes(100, 0));
        assert_eq!(numbered_bytes(3, 7), numbered_start(3, 7)[..3]);
    }
}
