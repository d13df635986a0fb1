//! The progress display: one line on a terminal, and nothing elsewhere.

use std::io::{self, IsTerminal as _};

use indicatif::{ProgressBar, ProgressStyle};

/// Shows how far a run is.
pub(super) struct Progress(Option<ProgressBar>);

impl Progress {
    /// Shows the progress of a number of measurements on standard error, if that is a terminal.
    pub(super) fn of(measurements: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(measurements);
            if let Ok(style) =
                ProgressStyle::with_template("{pos}/{len} {wide_bar} {msg} {eta} left")
            {
                bar.set_style(style);
            }
            bar
        });
        Self(bar)
    }

    /// Shows what is being measured.
    pub(super) fn begin(&self, what: String) {
        if let Some(bar) = &self.0 {
            bar.set_message(what);
            bar.tick();
        }
    }

    /// Counts a measurement.
    pub(super) fn end_one(&self) {
        if let Some(bar) = &self.0 {
            bar.inc(1);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
