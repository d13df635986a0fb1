//! The requests that the load generator sends.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Served;
use crate::serve::site::FileSet;

/// The number of digits of the number in a distinct request.
const NUMBER_DIGITS: usize = 16;

/// The number of numbers that one [`Requests`] may use. No measurement needs more.
const BLOCK_NUMBERS: u64 = 1_000_000_000;

/// The number of blocks of numbers that are in use, so that no two requests of a run are the same.
static BLOCKS: AtomicU64 = AtomicU64::new(0);

/// The requests of one measurement. All have the same length. They differ in the file that they
/// request, and distinct requests also differ in a number in the query and in a cookie, as requests
/// of real clients differ in what identifies a client, a session or a trace.
pub(in crate::serve) struct Requests<'a> {
    set: &'a FileSet,
    bytes: Vec<u8>,
    /// The position of the part of the path that depends on the file.
    place_range: Range<usize>,
    /// The positions of the number, or none if requests for the same file are identical.
    number_ranges: Vec<Range<usize>>,
    number: u64,
    sent: usize,
}

/// A request.
pub(in crate::serve) struct Request<'a> {
    /// What to send.
    pub(in crate::serve) bytes: &'a [u8],
    /// The number of the requested file in its set.
    pub(in crate::serve) file: u32,
}

impl<'a> Requests<'a> {
    /// Creates the requests for the files of `served`.
    pub(in crate::serve) fn new(served: &Served<'a>, is_distinct: bool) -> Self {
        let number = "0".repeat(NUMBER_DIGITS);
        let (query, cookie) = match is_distinct {
            true => (
                format!("?n={number}"),
                format!("Cookie: session={number}\r\n"),
            ),
            false => (String::new(), String::new()),
        };
        let set = served.set;
        let (path, place) = (set.path(0), set.place(0));
        let text = format!(
            "GET {path}{query} HTTP/1.1\r\nHost: {}\r\n{cookie}\r\n",
            served.address
        );
        let range = |start: usize, bytes: usize| start..start + bytes;
        let place_start = "GET ".len() + path.len() - ".bin".len() - place.len();
        Self {
            set,
            place_range: range(place_start, place.len()),
            number_ranges: ["?n=", "session="]
                .into_iter()
                .filter_map(|before| Some(text.find(before)? + before.len()))
                .map(|start| range(start, NUMBER_DIGITS))
                .collect(),
            bytes: text.into_bytes(),
            number: BLOCKS.fetch_add(1, Ordering::Relaxed) * BLOCK_NUMBERS,
            sent: 0,
        }
    }

    /// Returns the next request.
    pub(in crate::serve) fn next(&mut self) -> Request<'_> {
        let file = self.set.file_at(self.sent);
        self.sent += 1;
        self.number += 1;
        write_digits(&mut self.bytes[self.place_range.clone()], file.into());
        for range in &self.number_ranges {
            write_digits(&mut self.bytes[range.clone()], self.number);
        }
        Request {
            bytes: &self.bytes,
            file,
        }
    }
}

/// Overwrites all digits in `text` with those of `number`. Leaves other characters as they are,
/// such as the slash between a directory and a name.
fn write_digits(text: &mut [u8], number: u64) {
    let mut rest = number;
    let digits = text.iter_mut().rev().filter(|byte| byte.is_ascii_digit());
    for digit in digits {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn requests(set: &FileSet, is_distinct: bool) -> Vec<(String, u32)> {
        let served = Served {
            address: ([127, 0, 0, 1], 80).into(),
            pid: 0,
            set,
        };
        let mut requests = Requests::new(&served, is_distinct);
        (0..3)
            .map(|_| {
                let request = requests.next();
                (
                    String::from_utf8(request.bytes.to_vec()).unwrap(),
                    request.file,
                )
            })
            .collect()
    }

    #[test]
    fn distinct_requests_differ_in_the_query_and_in_the_cookie() {
        let set = FileSet::new(5, 1);
        let mut all = requests(&set, true);
        all.extend(requests(&set, true));
        let (first, file) = &all[0];
        let number = first.split(['=', ' ']).nth(2).unwrap();
        let expected = format!(
            "GET /5.bin?n={number} HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\
             Cookie: session={number}\r\n\r\n"
        );
        assert_eq!((first, *file), (&expected, 0));
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count, "{all:?}");
    }

    #[test]
    fn identical_requests_are_identical() {
        let all = requests(&FileSet::new(5, 1), false);
        assert_eq!(
            all[0].0,
            "GET /5.bin HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n"
        );
        assert!(all.iter().all(|request| *request == all[0]));
    }

    #[test]
    fn requests_are_spread_over_the_files() {
        let set = FileSet::new(5, 1000);
        for (text, file) in requests(&set, true) {
            let start = format!("GET {}?", set.path(file));
            assert!(text.starts_with(&start), "{text}");
        }
    }
}
