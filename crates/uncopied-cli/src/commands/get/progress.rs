//! The progress display: one line on a terminal, and nothing elsewhere.

use std::cell::Cell;
use std::fmt;
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::{message_line, say};

/// Narrower terminals get no bar.
const MIN_COLUMNS_FOR_BAR: u16 = 60;
/// How often the number of bytes of several files is formatted anew.
const MESSAGE_INTERVAL: Duration = Duration::from_millis(200);
/// How often the line is drawn.
const TICK: Duration = Duration::from_millis(100);

/// Shows how far the downloads are: the bytes of a single file, or the number of files.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    is_single: bool,
    columns: u16,
    bytes: Cell<u64>,
    began: Instant,
    next_message: Cell<Instant>,
}

impl Progress {
    /// Shows nothing.
    pub(super) fn hidden() -> Self {
        Self {
            bar: None,
            is_single: false,
            columns: 0,
            bytes: Cell::new(0),
            began: Instant::now(),
            next_message: Cell::new(Instant::now()),
        }
    }

    /// Shows the progress of a number of files on standard error.
    pub(super) fn on_terminal(files: usize) -> Self {
        let target = ProgressDrawTarget::stderr();
        let columns = rustix::termios::tcgetwinsize(std::io::stderr())
            .ok()
            .map(|size| size.ws_col)
            .filter(|columns| *columns > 0)
            .unwrap_or(80);
        let progress = Self {
            bar: Some(ProgressBar::with_draw_target(None, target)),
            is_single: files == 1,
            columns,
            ..Self::hidden()
        };
        if let Some(bar) = &progress.bar {
            if progress.is_single {
                progress.set_style(&["{wide_msg} {bytes} {bytes_per_sec}"; 2]);
            } else {
                bar.set_length(files as u64);
                progress.set_style(&[
                    "{pos}/{len} {msg} {eta}",
                    "{pos}/{len} files {wide_bar} {msg} {eta} left",
                ]);
            }
            bar.enable_steady_tick(TICK);
        }
        progress
    }

    /// Sets the style for narrow and for wide terminals.
    fn set_style(&self, [narrow, wide]: &[&str; 2]) {
        let template = match self.columns < MIN_COLUMNS_FOR_BAR {
            true => narrow,
            false => wide,
        };
        if let Some(bar) = &self.bar
            && let Ok(style) = ProgressStyle::with_template(template)
        {
            bar.set_style(style);
        }
    }

    /// Shows the name of a single file.
    pub(super) fn set_name(&self, name: &dyn fmt::Display) {
        if let Some(bar) = self.bar.as_ref().filter(|_| self.is_single) {
            bar.set_message(escaped(name));
        }
    }

    /// Shows that a single file is at a position, of a length that may be unknown.
    pub(super) fn set_position(&self, position: u64, total: Option<u64>) {
        let Some(bar) = self.bar.as_ref().filter(|_| self.is_single) else {
            return;
        };
        bar.set_position(position);
        bar.reset_eta();
        if let Some(total) = total {
            bar.set_length(total);
            self.set_style(&[
                "{wide_msg} {percent:>3}% {bytes_per_sec} {eta}",
                "{wide_msg} {percent:>3}% {bar:20} {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
            ]);
        }
    }

    /// Counts received bytes.
    pub(super) fn moved(&self, count: u64) {
        let Some(bar) = &self.bar else { return };
        if self.is_single {
            bar.inc(count);
            return;
        }
        let bytes = self.bytes.get() + count;
        self.bytes.set(bytes);
        let now = Instant::now();
        if now >= self.next_message.get() {
            self.next_message.set(now + MESSAGE_INTERVAL);
            let seconds = now.duration_since(self.began).as_secs_f64().max(0.001);
            // A rate is only shown, so its rounding does not matter.
            let rate = BinaryBytes((bytes as f64 / seconds) as u64);
            bar.set_message(format!("{} {rate}/s", BinaryBytes(bytes)));
        }
    }

    /// Counts a file that is done, or has failed.
    pub(super) fn end_file(&self) {
        if let Some(bar) = self.bar.as_ref().filter(|_| !self.is_single) {
            bar.inc(1);
        }
    }

    /// Prints a line above the display, if there is one.
    pub(super) fn note(&self, message: &dyn fmt::Display) {
        if let Some(bar) = &self.bar {
            bar.suspend(|| say(message));
        }
    }

    /// Prints a line on standard error, in any case.
    pub(super) fn say(&self, message: &dyn fmt::Display) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(message)),
            None => say(message),
        }
    }

    /// Removes the display.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Returns a name without the control characters that would move the cursor.
fn escaped(name: &dyn fmt::Display) -> String {
    let line = message_line(name);
    line.trim_start_matches("uncopied: ").trim_end().to_owned()
}
