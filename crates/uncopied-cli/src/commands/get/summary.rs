//! The summary that `--json` prints.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use uncopied::Mechanism;

/// All downloads of one run.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) downloads: Vec<Download>,
    /// Bytes of bodies that were received.
    pub(super) bytes: u64,
    pub(super) mechanisms: BTreeMap<&'static str, u64>,
    pub(super) seconds: f64,
    pub(super) failed: usize,
}

/// One download.
#[derive(Debug, Serialize)]
pub(super) struct Download {
    /// The URL that the user gave, without its credentials.
    pub(super) url: String,
    /// The file, or null for standard output.
    pub(super) path: Option<String>,
    /// The status of the last response, or null if there was none.
    pub(super) status: Option<u16>,
    /// The length of the whole file, if the server has told it.
    pub(super) size: Option<u64>,
    /// Bytes of bodies that were received, with those of failed attempts.
    pub(super) bytes: u64,
    /// The number of bytes of an earlier run that were kept.
    pub(super) resumed_bytes: u64,
    /// Whether nothing was fetched because the file was complete and unchanged.
    pub(super) unchanged: bool,
    pub(super) redirects: u32,
    pub(super) retries: u32,
    pub(super) seconds: f64,
    pub(super) mechanisms: BTreeMap<&'static str, u64>,
    /// Why the download failed, or null.
    pub(super) error: Option<String>,
}

impl Summary {
    pub(super) fn new(downloads: Vec<Download>, time: Duration) -> Self {
        let mut mechanisms = BTreeMap::new();
        for (name, count) in downloads.iter().flat_map(|download| &download.mechanisms) {
            *mechanisms.entry(*name).or_default() += count;
        }
        Self {
            bytes: downloads.iter().map(|download| download.bytes).sum(),
            mechanisms,
            seconds: time.as_secs_f64(),
            failed: downloads
                .iter()
                .filter(|download| download.error.is_some())
                .count(),
            downloads,
        }
    }

    /// Returns the line that is printed.
    pub(super) fn line(&self) -> String {
        // Numbers and texts can always be serialised.
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }
}

/// Returns the counts by the names of their mechanisms.
pub(super) fn named(counts: &[(Mechanism, u64)]) -> BTreeMap<&'static str, u64> {
    let named = counts
        .iter()
        .map(|(mechanism, count)| (mechanism.name(), *count));
    named.collect()
}
