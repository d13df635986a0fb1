//! A skip is a third result: printed and counted, never a silent pass.

/// Reports that the test `name` cannot run here. Fails where skips are forbidden.
///
/// # Panics
///
/// If `UNCOPIED_TEST_FORBID_SKIPS` is set. The gate sets it after installing what the tests need.
pub(crate) fn skip(name: &str, why: &str) {
    println!("SKIP {name}: {why}");
    assert!(
        std::env::var_os("UNCOPIED_TEST_FORBID_SKIPS").is_none(),
        "{name} was skipped although UNCOPIED_TEST_FORBID_SKIPS is set: {why}"
    );
}

/// Reports that the test `name`, which the gate does not require, cannot run here. Never fails.
pub(crate) fn skip_optional(name: &str, why: &str) {
    println!("LEFT OUT {name}: {why}");
}
