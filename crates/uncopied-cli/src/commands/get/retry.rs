//! When a failed request is tried again, and when a download is given up.

use std::time::{Duration, Instant, SystemTime};

use tokio::time::timeout;

use super::error::GetError;
use super::response::Head;
use crate::flags::TimeSpan;

/// The longest pause between two requests.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// The longest pause that a server can ask for.
const MAX_ASKED_PAUSE: Duration = Duration::from_secs(5 * 60);

/// Counts the failures of one download, or of one part of it.
#[derive(Clone, Debug)]
pub(super) struct Retries {
    limit: u32,
    first_pause: Duration,
    failures: u32,
}

impl Retries {
    pub(super) fn new(limit: u32, first_pause: Duration) -> Self {
        Self {
            limit,
            first_pause,
            failures: 0,
        }
    }

    /// Returns how long to wait before the next request, or `None` to give up.
    ///
    /// `began` tells whether any byte has arrived, and `progressed` whether the last request has
    /// brought bytes that the next one need not ask for.
    pub(super) fn pause(
        &mut self,
        error: &GetError,
        began: bool,
        progressed: bool,
    ) -> Option<Duration> {
        if !error.is_transient(began) {
            return None;
        }
        if progressed {
            self.failures = 0;
        }
        if self.failures >= self.limit {
            return None;
        }
        let doubled = self.first_pause.saturating_mul(1 << self.failures.min(20));
        self.failures += 1;
        if let GetError::Status {
            retry_after: Some(asked),
            ..
        } = error
        {
            return (*asked <= MAX_ASKED_PAUSE).then_some(*asked);
        }
        // Clients that were cut off at the same moment must not come back at the same moment.
        Some(doubled.min(MAX_PAUSE).mul_f64(0.5 + 0.5 * fastrand::f64()))
    }
}

/// Returns the error for a status that is no success.
pub(super) fn status_error(head: &Head) -> GetError {
    GetError::Status {
        status: head.status,
        retry_after: head.retry_after(SystemTime::now()),
    }
}

/// The moment at which a download is given up (`--max-time`).
pub(super) struct Deadline {
    limit: TimeSpan,
    began: Instant,
}

impl Deadline {
    pub(super) fn new(limit: TimeSpan) -> Self {
        Self {
            limit,
            began: Instant::now(),
        }
    }

    /// Waits for a future until the deadline.
    pub(super) async fn bound<T>(
        &self,
        future: impl Future<Output = Result<T, GetError>>,
    ) -> Result<T, GetError> {
        match self.limit.limit() {
            None => future.await,
            Some(time) => timeout(time.saturating_sub(self.began.elapsed()), future)
                .await
                .unwrap_or(Err(GetError::MaxTime(self.limit))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_start_again_after_progress() {
        let mut retries = Retries::new(8, Duration::from_secs(1));
        let error = GetError::NoResponse;
        for longest in [1, 2, 4, 8, 16, 30, 30, 30] {
            let pause = retries.pause(&error, false, false).unwrap_or_default();
            let longest = Duration::from_secs(longest);
            assert!(longest / 2 <= pause && pause <= longest, "{pause:?}");
        }
        assert_eq!(retries.pause(&error, false, false), None);
        assert!(retries.pause(&error, false, true) <= Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_server_may_ask_for_a_pause_of_at_most_five_minutes() {
        let asked = |seconds, status| GetError::Status {
            status,
            retry_after: Some(Duration::from_secs(seconds)),
        };
        let mut retries = Retries::new(8, Duration::ZERO);
        let pause = retries.pause(&asked(300, 503), false, false);
        assert_eq!(pause, Some(Duration::from_secs(300)));
        assert_eq!(retries.pause(&asked(301, 503), false, false), None);
        assert_eq!(retries.pause(&asked(1, 404), false, false), None);
    }

    #[test]
    fn a_refused_connection_is_retried_only_once_bytes_have_arrived() {
        let refused = GetError::Connect {
            to: String::new(),
            source: std::io::ErrorKind::ConnectionRefused.into(),
        };
        let mut retries = Retries::new(8, Duration::ZERO);
        assert_eq!(retries.pause(&refused, false, false), None);
        assert!(retries.pause(&refused, true, false).is_some());
    }
}
