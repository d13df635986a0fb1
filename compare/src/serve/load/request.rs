//! The requests that the load generator sends.

use std::ops::Range;

use super::ServedFile;

/// The number of digits in the query of a distinct request.
const NUMBER_DIGITS: usize = 12;

/// A request that is sent again and again, with or without changes.
pub(in crate::serve) struct Request {
    bytes: Vec<u8>,
    /// The position of the number in the request, or `None` if all requests are the same.
    number_range: Option<Range<usize>>,
    number: u64,
}

impl Request {
    /// A request that is the same every time.
    pub(in crate::serve) fn identical(served: &ServedFile<'_>) -> Self {
        Self {
            bytes: text(served, served.path),
            number_range: None,
            number: 0,
        }
    }

    /// A request that has a different number in its query every time.
    pub(super) fn distinct(served: &ServedFile<'_>) -> Self {
        let path = format!("{}?{:0digits$}", served.path, 0, digits = NUMBER_DIGITS);
        let end = "GET ".len() + path.len();
        Self {
            bytes: text(served, &path),
            number_range: Some(end - NUMBER_DIGITS..end),
            number: 0,
        }
    }

    /// Returns the bytes of the next request.
    pub(in crate::serve) fn next(&mut self) -> &[u8] {
        if let Some(number_range) = &self.number_range {
            self.number += 1;
            let mut rest = self.number;
            for digit in self.bytes[number_range.clone()].iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
        }
        &self.bytes
    }
}

fn text(served: &ServedFile<'_>, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", served.address).into_bytes()
}
