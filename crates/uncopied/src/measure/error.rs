//! Why nothing could be measured.

use std::{error, fmt, io};

/// Why [`Tuning::measure`](crate::Tuning::measure) has measured nothing. The text names the step,
/// and the source is the error of the system call that failed.
#[derive(Debug)]
pub struct MeasureError {
    step: &'static str,
    source: io::Error,
}

impl MeasureError {
    /// Returns a closure for `map_err`. The step is worded to follow "cannot".
    pub(super) fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self {
            step,
            source: source.into(),
        }
    }
}

impl fmt::Display for MeasureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} to measure this machine", self.step)
    }
}

impl error::Error for MeasureError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&self.source)
    }
}
