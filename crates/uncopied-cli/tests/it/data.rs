//! The bytes of test files.

use std::thread::sleep;
use std::time::Duration;

/// Returns `len` bytes that do not repeat at any distance that a kernel path could mix up.
pub(crate) fn test_bytes(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        // xorshift64: no two words of a file are alike.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(len).collect()
}

/// Waits until the files of a test count as stable: the server trusts the time stamps of a file
/// that has not changed for three seconds, and caches it.
pub(crate) fn wait_until_files_are_stable() {
    sleep(Duration::from_millis(3500));
}
