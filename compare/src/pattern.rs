//! Generates bytes that do not repeat, so that a comparison with the bytes received detects
//! missing, duplicated and shifted parts.

/// Returns `size` pseudo-random bytes. The size seeds the generator, so sequences of different
/// sizes already differ in their first bytes. A comparison therefore also detects that the bytes of
/// another size were sent.
pub(crate) fn bytes(size: u64) -> Vec<u8> {
    // xorshift64.
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ size;
    let words = (size as usize).div_ceil(8);
    let mut bytes = Vec::with_capacity(words * 8);
    for _ in 0..words {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size as usize);
    bytes
}
