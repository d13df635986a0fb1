//! Feeds bytes to the parser of request heads, and compares it with that of hyper.

#![no_main]

#[path = "../../crates/uncopied-cli/tests/it/fuzz_checks.rs"]
#[allow(dead_code, reason = "each target uses one of the checks")]
mod fuzz_checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_checks::check_head(bytes));
