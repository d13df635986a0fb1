//! A skip is a third result: printed and counted, never a silent pass.

/// Says that the test `name` could not be made here. Where nothing may be missing, it fails.
///
/// # Panics
///
/// If `UNCOPIED_TEST_FORBID_SKIPS` is set, as the gate does once it has installed what tests need.
pub(crate) fn skip(name: &str, why: &str) {
    println!("SKIP {name}: {why}");
    assert!(
        std::env::var_os("UNCOPIED_TEST_FORBID_SKIPS").is_none(),
        "{name} was skipped although UNCOPIED_TEST_FORBID_SKIPS is set: {why}"
    );
}

/// Says that a check that the gate does without could not be made here. Never a failure.
pub(crate) fn leave_out(name: &str, why: &str) {
    println!("LEFT OUT {name}: {why}");
}
