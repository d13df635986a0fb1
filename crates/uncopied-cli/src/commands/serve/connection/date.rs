//! The value of the `Date` header.

use std::cell::Cell;
use std::time::{Duration, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// The length of a date of HTTP, such as `Sun, 06 Nov 1994 08:49:37 GMT`.
const DATE_BYTES: usize = 29;

thread_local! {
    /// The last date that was formatted, and its time in seconds since the Unix epoch.
    static LAST: Cell<(u64, [u8; DATE_BYTES])> = const { Cell::new((0, [b' '; DATE_BYTES])) };
}

/// Appends the current date to `out`. It is formatted once per second.
pub(super) fn write_date(out: &mut Vec<u8>) {
    // The coarse clock is a few milliseconds behind, but takes no system call to read.
    let now = clock_gettime(ClockId::RealtimeCoarse).tv_sec;
    let now = u64::try_from(now).unwrap_or(0);
    let (mut second, mut date) = LAST.get();
    if second != now {
        let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now));
        if let Ok(bytes) = text.as_bytes().try_into() {
            (second, date) = (now, bytes);
            LAST.set((second, date));
        }
    }
    out.extend_from_slice(&date);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_that_of_the_clock() {
        let mut out = Vec::new();
        write_date(&mut out);
        write_date(&mut out);
        let dates: Vec<_> = out.chunks(DATE_BYTES).collect();
        let text = str::from_utf8(dates[1]).expect("a date is text");
        let date = httpdate::parse_http_date(text).expect("it is a date of HTTP");
        let age = date.elapsed().expect("it is not in the future");
        assert!(age < Duration::from_secs(5), "{age:?}");
    }
}
