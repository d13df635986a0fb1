//! Reports skipped tests, so that a test that could not run is not mistaken for one that passed.

/// Reports that the test `name` cannot run here.
///
/// # Panics
///
/// If `UNCOPIED_TEST_FORBID_SKIPS` is set. The gate (`.ci/run`) sets it after installing the tools
/// that the tests need.
pub(crate) fn skip(name: &str, why: &str) {
    println!("SKIP {name}: {why}");
    assert!(
        std::env::var_os("UNCOPIED_TEST_FORBID_SKIPS").is_none(),
        "{name} was skipped although UNCOPIED_TEST_FORBID_SKIPS is set: {why}"
    );
}

/// Reports that a test that the gate does not require cannot run here. Never panics.
pub(crate) fn skip_optional(name: &str, why: &str) {
    println!("LEFT OUT {name}: {why}");
}
