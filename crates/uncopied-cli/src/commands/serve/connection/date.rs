//! The value of the `Date` header.

use std::cell::RefCell;
use std::time::{Duration, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::server::SecondText;

thread_local! {
    static DATE: RefCell<SecondText> = const { RefCell::new(SecondText::new()) };
}

/// Appends the current date to `out`.
pub(super) fn write_date(out: &mut Vec<u8>) {
    // The coarse clock is a few milliseconds behind, but takes no system call to read.
    let now = clock_gettime(ClockId::RealtimeCoarse).tv_sec;
    let now = u64::try_from(now).unwrap_or(0);
    DATE.with_borrow_mut(|date| {
        date.append(now, out, |text| {
            let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now));
            text.extend_from_slice(date.as_bytes());
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The length of a date of HTTP, such as `Sun, 06 Nov 1994 08:49:37 GMT`.
    const DATE_BYTES: usize = 29;

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
