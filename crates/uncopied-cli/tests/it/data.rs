//! The content of test files.

use std::thread::sleep;
use std::time::Duration;

/// Returns `len` bytes without any repeating pattern, so that bytes from a wrong position never
/// look right.
pub(crate) fn test_bytes(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        // xorshift64 repeats a state only after 2^64 - 1 words, so all words of a file differ.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(len).collect()
}

/// Waits until the server considers the files of a test to be stable. Once a file has not changed
/// for three seconds, the server trusts the file's timestamps and caches it.
pub(crate) fn wait_until_files_are_stable() {
    sleep(Duration::from_millis(3500));
}
