//! A text that changes once per second, such as a date.

/// The text of the last second for which it was needed.
pub(crate) struct SecondText {
    second: u64,
    text: Vec<u8>,
}

impl SecondText {
    pub(crate) const fn new() -> Self {
        Self {
            // Later than any real time, so the first text is formatted.
            second: u64::MAX,
            text: Vec::new(),
        }
    }

    /// Appends the text for `second` to `out`. Calls `format` only if the last text was for another
    /// second.
    pub(crate) fn append(
        &mut self,
        second: u64,
        out: &mut Vec<u8>,
        format: impl FnOnce(&mut Vec<u8>),
    ) {
        if self.second != second {
            self.second = second;
            self.text.clear();
            format(&mut self.text);
        }
        out.extend_from_slice(&self.text);
    }
}
