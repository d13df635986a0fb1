//! Evaluates the `Range` field (RFC 9110 §14). Does no I/O.

use std::ops::Range;

/// The maximum number of ranges in one request. If there are more, the response is the whole file,
/// as in nginx.
pub(crate) const MAX_RANGES: usize = 16;

/// The bytes of a file to send, and the status of the response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RangeSelection {
    /// The whole file: 200.
    Whole,
    /// One range, which is not empty and lies within the file: 206.
    One(Range<u64>),
    /// Two or more ranges that neither overlap nor touch: 206, multipart. They are in the order of
    /// the request, or sorted if some of them had to be merged.
    Several(Vec<Range<u64>>),
    /// No range contains a byte of the file: 416.
    Unsatisfiable,
}

/// Applies the value of a `Range` field to a file of `len` bytes.
///
/// - A field with a unit other than bytes, or with any syntax error, is ignored.
/// - Ranges that overlap or touch are merged, so that no byte is sent twice.
/// - If the ranges together ask for more bytes than the file has, the response is the whole file.
///   Such a request is an attack or a mistake, and the whole file costs less to send.
/// - If the file is empty, the response is the whole file, as in nginx and Go.
pub(crate) fn select(value: &[u8], len: u64) -> RangeSelection {
    let Some(specs) = parse(value) else {
        return RangeSelection::Whole;
    };
    if len == 0 {
        return RangeSelection::Whole;
    }
    let mut ranges: Vec<_> = specs.iter().filter_map(|spec| spec.within(len)).collect();
    let sum = ranges
        .iter()
        .try_fold(0_u64, |sum, range| sum.checked_add(range.end - range.start));
    if sum.is_none_or(|sum| sum > len) {
        return RangeSelection::Whole;
    }
    merge(&mut ranges);
    match ranges.len() {
        0 => RangeSelection::Unsatisfiable,
        1 => RangeSelection::One(ranges.swap_remove(0)),
        _ => RangeSelection::Several(ranges),
    }
}

/// One element of the list in a `Range` field, as the client wrote it. A number that does not fit
/// into 64 bits is replaced with the largest 64-bit number, which is beyond the end of every file.
#[derive(Clone, Copy, Debug)]
enum RangeSpec {
    From(u64),
    Between(u64, u64),
    Last(u64),
}

impl RangeSpec {
    /// Returns the bytes that this element selects in a file of `len` bytes, if any.
    fn within(self, len: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From(first) => first..len,
            Self::Between(first, last) => first..last.saturating_add(1).min(len),
            Self::Last(count) => len.saturating_sub(count)..len,
        };
        (range.start < range.end).then_some(range)
    }
}

fn parse(value: &[u8]) -> Option<Vec<RangeSpec>> {
    let (unit, list) = value.split_at_checked(b"bytes=".len())?;
    if !unit.eq_ignore_ascii_case(b"bytes=") {
        return None;
    }
    let mut specs = Vec::new();
    for element in list.split(|byte| *byte == b',') {
        let element = element.trim_ascii();
        // RFC 9110 §5.6.1.2: empty elements are skipped.
        if element.is_empty() {
            continue;
        }
        if specs.len() == MAX_RANGES {
            return None;
        }
        specs.push(parse_spec(element)?);
    }
    (!specs.is_empty()).then_some(specs)
}

fn parse_spec(element: &[u8]) -> Option<RangeSpec> {
    let dash = element.iter().position(|byte| *byte == b'-')?;
    let (first, last) = (&element[..dash], &element[dash + 1..]);
    match (first.is_empty(), last.is_empty()) {
        (true, true) => None,
        (true, false) => Some(RangeSpec::Last(number(last)?)),
        (false, true) => Some(RangeSpec::From(number(first)?)),
        (false, false) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(RangeSpec::Between(first, last))
        }
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |sum, digit| {
        digit.is_ascii_digit().then(|| {
            sum.saturating_mul(10)
                .saturating_add(u64::from(digit - b'0'))
        })
    })
}

/// Merges ranges that overlap or touch, and sorts the result. If there is nothing to merge, the
/// ranges keep the client's order, which may put the most useful bytes first.
fn merge(ranges: &mut Vec<Range<u64>>) {
    let touches = |a: &Range<u64>, b: &Range<u64>| a.start <= b.end && b.start <= a.end;
    let are_apart = ranges
        .iter()
        .enumerate()
        .all(|(at, range)| ranges[at + 1..].iter().all(|other| !touches(range, other)));
    if are_apart {
        return;
    }
    ranges.sort_by_key(|range| range.start);
    ranges.dedup_by(|next, kept| {
        let is_merged = next.start <= kept.end;
        if is_merged {
            kept.end = kept.end.max(next.end);
        }
        is_merged
    });
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::RangeSelection::{One, Several, Unsatisfiable, Whole};
    use super::*;

    fn of(value: &str, len: u64) -> RangeSelection {
        select(value.as_bytes(), len)
    }

    #[test]
    fn a_single_range_is_clipped_to_the_file() {
        assert_eq!(of("bytes=0-0", 10), One(0..1));
        assert_eq!(of("bytes=2-5", 10), One(2..6));
        assert_eq!(of("bytes=2-", 10), One(2..10));
        assert_eq!(of("bytes=2-99", 10), One(2..10));
        assert_eq!(of("bytes=-3", 10), One(7..10));
        assert_eq!(of("bytes=-30", 10), One(0..10));
        assert_eq!(of("Bytes=0-", 10), One(0..10));
        assert_eq!(of("bytes= , 1-1 ,", 10), One(1..2));
    }

    #[test]
    fn ranges_past_the_end_are_unsatisfiable() {
        assert_eq!(of("bytes=10-", 10), Unsatisfiable);
        assert_eq!(of("bytes=10-20,30-", 10), Unsatisfiable);
        assert_eq!(of("bytes=-0", 10), Unsatisfiable);
        assert_eq!(of("bytes=10-20,0-0", 10), One(0..1));
    }

    #[test]
    fn malformed_fields_and_other_units_are_ignored() {
        for value in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=a-b",
            "bytes=1",
            "bytes=5-4",
            "bytes=+1-2",
            "bytes=1--2",
            "bytes=1-2-3",
            "bytes=0x1-2",
            "bytes=1 - 2",
            "items=0-1",
            "bytes 0-1",
            "bytes=0-0,5-4",
        ] {
            assert_eq!(of(value, 10), Whole, "{value}");
        }
    }

    #[test]
    fn an_empty_file_is_sent_whole() {
        assert_eq!(of("bytes=0-", 0), Whole);
        assert_eq!(of("bytes=-5", 0), Whole);
    }

    #[test]
    fn several_ranges_keep_their_order_unless_they_touch() {
        assert_eq!(of("bytes=8-9,0-1", 10), Several(vec![8..10, 0..2]));
        assert_eq!(of("bytes=0-1,2-3", 10), One(0..4));
        assert_eq!(of("bytes=6-7,0-2,1-3", 100), Several(vec![0..4, 6..8]));
    }

    #[test]
    fn too_many_ranges_or_bytes_get_the_whole_file() {
        let list = |count: u64| {
            let ranges: Vec<_> = (0..count).map(|at| format!("{0}-{0}", at * 2)).collect();
            format!("bytes={}", ranges.join(","))
        };
        assert!(matches!(of(&list(16), 100), Several(ranges) if ranges.len() == 16));
        assert_eq!(of(&list(17), 100), Whole);
        assert_eq!(of("bytes=0-,0-", 10), Whole);
        assert_eq!(of("bytes=0-5,4-9", 10), Whole);
    }

    /// The bug in nginx: the sum of the suffix lengths overflowed and became negative.
    #[test]
    fn cve_2017_7529_sums_do_not_overflow() {
        assert_eq!(
            of("bytes=-9223372036854775608,-9223372036854775808", 1000),
            Whole
        );
        assert_eq!(
            of("bytes=-18446744073709551615,-18446744073709551615", 1000),
            Whole
        );
        assert_eq!(of("bytes=0-18446744073709551615", 1000), One(0..1000));
        assert_eq!(of("bytes=0-99999999999999999999999999", 1000), One(0..1000));
        assert_eq!(of("bytes=99999999999999999999999999-", 1000), Unsatisfiable);
        assert_eq!(of("bytes=0-,-1", u64::MAX), Whole);
        let last = u64::MAX - 1;
        assert_eq!(of("bytes=18446744073709551615-", u64::MAX), Unsatisfiable);
        assert_eq!(
            of("bytes=18446744073709551614-", u64::MAX),
            One(last..u64::MAX)
        );
    }

    /// The bug in dufs: it subtracted the suffix length from the file length, even if the file was
    /// shorter than the suffix.
    #[test]
    fn dufs_690_long_suffixes_do_not_underflow() {
        assert_eq!(of("bytes=-1001", 1000), One(0..1000));
        assert_eq!(of("bytes=-1", 0), Whole);
        assert_eq!(of("bytes=-99999999999999999999999999", 1000), One(0..1000));
    }

    /// The bug in lighttpd: it served the ranges before an invalid one instead of ignoring the
    /// field.
    #[test]
    fn lighttpd_2899_an_invalid_range_invalidates_the_field() {
        assert_eq!(of("bytes=0-1,bad", 10), Whole);
        assert_eq!(of("bytes=0-1,3-2,5-6", 10), Whole);
        assert_eq!(of("bytes=20-,5-4", 10), Whole);
    }

    /// A naive implementation of range selection. Returns the positions of the selected bytes.
    fn model(specs: &[(u8, u64, u64)], len: u64) -> BTreeSet<u64> {
        let is_selected = |at: &u64| {
            specs.iter().any(|(kind, a, b)| match kind {
                0 => at >= a,
                1 => at >= a && *at <= a + b,
                _ => at + a >= len,
            })
        };
        (0..len).filter(is_selected).collect()
    }

    proptest! {
        #[test]
        fn ranges_agree_with_a_set_of_bytes(
            specs in proptest::collection::vec((0..3_u8, 0..80_u64, 0..20_u64), 1..8),
            len in 0..64_u64,
        ) {
            let list: Vec<_> = specs.iter().map(|(kind, a, b)| match kind {
                0 => format!("{a}-"),
                1 => format!("{a}-{}", a + b),
                _ => format!("-{a}"),
            }).collect();
            let expected = model(&specs, len);
            let ranges = match of(&format!("bytes={}", list.join(", ")), len) {
                Whole => {
                    // The whole file is expected only if the file is empty, or if the ranges
                    // together ask for more bytes than the file has.
                    let sum: u64 = specs.iter().map(|spec| model(&[*spec], len).len() as u64).sum();
                    prop_assert!(len == 0 || sum > len);
                    return Ok(());
                }
                Unsatisfiable => vec![],
                One(range) => vec![range],
                Several(ranges) => ranges,
            };
            let bytes: Vec<_> = ranges.iter().cloned().flatten().collect();
            let set: BTreeSet<_> = bytes.iter().copied().collect();
            prop_assert_eq!(bytes.len(), set.len(), "a byte is sent twice");
            prop_assert_eq!(set, expected);
        }

        #[test]
        fn no_input_selects_bytes_outside_the_file(value in "(bytes=)?[-0-9, x]{0,60}", len: u64) {
            let ranges = match of(&value, len) {
                One(range) => vec![range],
                Several(ranges) => ranges,
                Whole | Unsatisfiable => vec![],
            };
            prop_assert!(ranges.len() <= MAX_RANGES);
            for range in ranges {
                prop_assert!(range.start < range.end && range.end <= len);
            }
        }
    }
}
