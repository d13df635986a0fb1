//! Preconditions, in the order of RFC 9110 §13.2.2. Pure.

use std::time::UNIX_EPOCH;

use http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE};
use http::{HeaderMap, HeaderName};

/// What tells one version of a file from another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Validators<'a> {
    /// The entity tag as it is sent: `"…"` or `W/"…"`.
    pub(crate) etag: &'a [u8],
    /// `Last-Modified` in seconds since 1970, if that is a date that HTTP can write.
    pub(crate) modified: Option<u64>,
    /// Whether the last change lies so far back that a further one shows.
    pub(crate) settled: bool,
}

/// What the preconditions of a GET or HEAD come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Answer as if there were none.
    Send,
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

/// Steps 1 to 4: everything but `If-Range`.
pub(crate) fn check(headers: &HeaderMap, validators: Validators<'_>) -> Verdict {
    let unmodified_since = |name| {
        let modified = validators.modified?;
        date(headers, name).map(|date| modified <= date)
    };
    let passed = match matches(headers, IF_MATCH, validators.etag, strong) {
        Some(matched) => matched,
        None => unmodified_since(IF_UNMODIFIED_SINCE).unwrap_or(true),
    };
    if !passed {
        return Verdict::Failed;
    }
    let known = match matches(headers, IF_NONE_MATCH, validators.etag, weak) {
        Some(matched) => matched,
        None => unmodified_since(IF_MODIFIED_SINCE).unwrap_or(false),
    };
    if known {
        Verdict::NotModified
    } else {
        Verdict::Send
    }
}

/// Step 5: whether the `Range` field counts. It does without an `If-Range`, and with one whose
/// validator is strong and the file's own (§13.1.5).
///
/// A date is strong only if the file cannot have changed twice within its second (§8.8.2.2), which
/// is unknown while that second is not well over.
pub(crate) fn range_counts(headers: &HeaderMap, validators: Validators<'_>) -> bool {
    let mut lines = headers.get_all(IF_RANGE).iter();
    let Some(line) = lines.next() else {
        return true;
    };
    if lines.next().is_some() {
        return false;
    }
    if let Some((tag, [])) = split_tag(line.as_bytes()) {
        return strong(tag, validators.etag);
    }
    let date = date(headers, IF_RANGE);
    validators.settled && date.is_some() && date == validators.modified
}

/// Whether a list of entity tags, or `*`, has `etag`. Nothing if the field is not there.
fn matches(
    headers: &HeaderMap,
    name: HeaderName,
    etag: &[u8],
    equal: fn(&[u8], &[u8]) -> bool,
) -> Option<bool> {
    let mut lines = headers.get_all(name).iter().peekable();
    lines.peek()?;
    Some(lines.any(|line| {
        let line = line.as_bytes().trim_ascii();
        line == b"*" || tags(line).any(|tag| equal(tag, etag))
    }))
}

/// The entity tags of a list, up to the first that is malformed. A tag may have commas in it.
fn tags(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        while let [b',' | b' ' | b'\t', rest @ ..] = list {
            list = rest;
        }
        let (tag, rest) = split_tag(list)?;
        let rest = rest.trim_ascii_start();
        if !rest.is_empty() && rest[0] != b',' {
            return None;
        }
        list = rest;
        Some(tag)
    })
}

/// Splits off the entity tag in front.
fn split_tag(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let quote = if text.starts_with(b"W/") { 2 } else { 0 };
    let opaque = text.get(quote..)?.strip_prefix(b"\"")?;
    let len = opaque
        .iter()
        .position(|byte| !matches!(byte, 0x21 | 0x23..=0x7E | 0x80..))?;
    (opaque[len] == b'"').then(|| text.split_at(quote + len + 2))
}

fn strong(a: &[u8], b: &[u8]) -> bool {
    !a.starts_with(b"W/") && a == b
}

fn weak(a: &[u8], b: &[u8]) -> bool {
    opaque(a) == opaque(b)
}

fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// The date of a field, in seconds since 1970. One that is malformed, or there twice, is ignored.
fn date(headers: &HeaderMap, name: HeaderName) -> Option<u64> {
    let mut lines = headers.get_all(name).iter();
    let (line, None) = (lines.next()?, lines.next()) else {
        return None;
    };
    let date = httpdate::parse_http_date(line.to_str().ok()?).ok()?;
    date.duration_since(UNIX_EPOCH)
        .ok()
        .map(|since| since.as_secs())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::header::HeaderValue;

    use super::Verdict::{Failed, NotModified, Send};
    use super::*;

    const BEFORE: &str = "Thu, 01 Jan 1970 00:00:09 GMT";
    const SAME: &str = "Thu, 01 Jan 1970 00:00:10 GMT";
    const AFTER: &str = "Thu, 01 Jan 1970 00:00:11 GMT";

    const STRONG: Validators<'_> = Validators {
        etag: b"\"tag\"",
        modified: Some(10),
        settled: true,
    };
    const WEAK: Validators<'_> = Validators {
        etag: b"W/\"tag\"",
        modified: Some(10),
        settled: false,
    };

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn verdict(lines: &[(&str, &str)]) -> Verdict {
        check(&headers(lines), STRONG)
    }

    #[test]
    fn if_match_compares_strongly() {
        assert_eq!(verdict(&[("if-match", "\"tag\"")]), Send);
        assert_eq!(verdict(&[("if-match", "*")]), Send);
        assert_eq!(verdict(&[("if-match", "\"x\", W/\"tag\"")]), Failed);
        assert_eq!(verdict(&[("if-match", "\"x\",\"tag\"")]), Send);
        assert_eq!(
            verdict(&[("if-match", "\"x\""), ("if-match", "\"tag\"")]),
            Send
        );
        assert_eq!(verdict(&[("if-match", "tag")]), Failed);
        assert_eq!(check(&headers(&[("if-match", "W/\"tag\"")]), WEAK), Failed);
        assert_eq!(check(&headers(&[("if-match", "*")]), WEAK), Send);
    }

    #[test]
    fn if_unmodified_since_counts_without_if_match() {
        assert_eq!(verdict(&[("if-unmodified-since", BEFORE)]), Failed);
        assert_eq!(verdict(&[("if-unmodified-since", SAME)]), Send);
        assert_eq!(verdict(&[("if-unmodified-since", AFTER)]), Send);
        assert_eq!(verdict(&[("if-unmodified-since", "yesterday")]), Send);
        assert_eq!(
            verdict(&[("if-unmodified-since", BEFORE), ("if-match", "\"tag\"")]),
            Send
        );
        assert_eq!(
            verdict(&[("if-unmodified-since", AFTER), ("if-match", "\"x\"")]),
            Failed
        );
    }

    #[test]
    fn if_none_match_compares_weakly() {
        assert_eq!(verdict(&[("if-none-match", "\"tag\"")]), NotModified);
        assert_eq!(verdict(&[("if-none-match", "W/\"tag\"")]), NotModified);
        assert_eq!(verdict(&[("if-none-match", "*")]), NotModified);
        assert_eq!(
            verdict(&[("if-none-match", "\"a,b\" , \"tag\"")]),
            NotModified
        );
        assert_eq!(
            verdict(&[("if-none-match", "\"x\""), ("if-none-match", "\"tag\"")]),
            NotModified
        );
        assert_eq!(verdict(&[("if-none-match", "\"x\"")]), Send);
        assert_eq!(verdict(&[("if-none-match", "tag")]), Send);
        assert_eq!(
            check(&headers(&[("if-none-match", "\"tag\"")]), WEAK),
            NotModified
        );
    }

    #[test]
    fn if_modified_since_counts_without_if_none_match() {
        assert_eq!(verdict(&[("if-modified-since", BEFORE)]), Send);
        assert_eq!(verdict(&[("if-modified-since", SAME)]), NotModified);
        assert_eq!(verdict(&[("if-modified-since", AFTER)]), NotModified);
        assert_eq!(verdict(&[("if-modified-since", "0")]), Send);
        assert_eq!(
            verdict(&[("if-modified-since", SAME), ("if-modified-since", SAME)]),
            Send
        );
        assert_eq!(
            verdict(&[("if-modified-since", AFTER), ("if-none-match", "\"x\"")]),
            Send
        );
        assert_eq!(
            verdict(&[("if-modified-since", BEFORE), ("if-none-match", "\"tag\"")]),
            NotModified
        );
    }

    #[test]
    fn a_failed_match_comes_before_not_modified() {
        assert_eq!(
            verdict(&[("if-match", "\"x\""), ("if-none-match", "\"tag\"")]),
            Failed
        );
        assert_eq!(
            verdict(&[("if-match", "\"tag\""), ("if-none-match", "\"tag\"")]),
            NotModified
        );
        assert_eq!(
            verdict(&[
                ("if-unmodified-since", BEFORE),
                ("if-modified-since", AFTER)
            ]),
            Failed
        );
        assert_eq!(
            verdict(&[("if-unmodified-since", SAME), ("if-modified-since", SAME)]),
            NotModified
        );
    }

    #[test]
    fn dates_do_not_count_for_a_file_without_one() {
        let undated = Validators {
            modified: None,
            ..STRONG
        };
        for name in ["if-unmodified-since", "if-modified-since"] {
            assert_eq!(check(&headers(&[(name, BEFORE)]), undated), Send);
            assert_eq!(check(&headers(&[(name, AFTER)]), undated), Send);
        }
    }

    #[test]
    fn if_range_wants_a_strong_validator() {
        let counts = |value, validators| range_counts(&headers(&[("if-range", value)]), validators);
        assert!(range_counts(&HeaderMap::new(), WEAK));
        assert!(counts("\"tag\"", STRONG));
        assert!(counts(SAME, STRONG));
        for value in [
            "\"x\"",
            "W/\"tag\"",
            "*",
            "tag",
            "\"tag\", \"x\"",
            BEFORE,
            AFTER,
            "",
        ] {
            assert!(!counts(value, STRONG), "{value}");
        }
        for value in ["\"tag\"", "W/\"tag\"", SAME] {
            assert!(!counts(value, WEAK), "{value}");
        }
        assert!(!counts(
            SAME,
            Validators {
                modified: None,
                ..STRONG
            }
        ));
        let twice = headers(&[("if-range", "\"tag\""), ("if-range", "\"tag\"")]);
        assert!(!range_counts(&twice, STRONG));
    }

    #[test]
    fn lists_end_at_the_first_malformed_tag() {
        let list = |text: &'static str| tags(text.as_bytes()).collect::<Vec<_>>();
        assert_eq!(
            list("\"a\", W/\"b\",,\t\"\""),
            [&b"\"a\""[..], b"W/\"b\"", b"\"\""]
        );
        assert_eq!(list("\"a\" \"b\""), [] as [&[u8]; 0]);
        assert_eq!(list("\"a\", b, \"c\""), [b"\"a\""]);
        assert_eq!(list("\"a"), [] as [&[u8]; 0]);
        assert_eq!(list("w/\"a\""), [] as [&[u8]; 0]);
        assert_eq!(list("W/"), [] as [&[u8]; 0]);
    }
}
