//! The parts of the line of totals that `serve` and `relay` share.

use std::fmt;

use uncopied::Mechanism;

/// Returns the ending of a noun after this number.
pub(crate) fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Writes the bytes of each mechanism, after a colon.
pub(crate) fn write_bytes(
    f: &mut fmt::Formatter<'_>,
    by_mechanism: impl IntoIterator<Item = (Mechanism, u64)>,
) -> fmt::Result {
    let mut before = ": ";
    for (mechanism, bytes) in by_mechanism {
        write!(f, "{before}{mechanism} {bytes}")?;
        before = ", ";
    }
    Ok(())
}

/// Writes how many lines of the access log were dropped, if any were.
pub(crate) fn write_dropped_lines(f: &mut fmt::Formatter<'_>, lines: u64) -> fmt::Result {
    match lines {
        0 => Ok(()),
        lines => write!(f, "; {lines} access log line{} dropped", plural(lines)),
    }
}
