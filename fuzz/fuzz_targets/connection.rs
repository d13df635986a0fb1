//! Feeds bytes to a whole connection, which serves a directory with two files.

#![no_main]

use std::fs;
use std::sync::LazyLock;

use tempfile::TempDir;

#[path = "../../crates/uncopied-cli/tests/it/fuzz_checks.rs"]
#[allow(dead_code, reason = "each target uses one of the checks")]
mod fuzz_checks;

static SITE: LazyLock<TempDir> = LazyLock::new(|| {
    let site = tempfile::tempdir().expect("a temporary directory");
    fs::write(site.path().join("file"), "content\n").expect("written");
    fs::write(site.path().join("large"), vec![b'x'; 200_000]).expect("written");
    site
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_checks::check_connection(SITE.path(), bytes));
