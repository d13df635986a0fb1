//! Evaluates preconditions in the order of RFC 9110 §13.2.2. Does no I/O.

use std::time::UNIX_EPOCH;

use http::HeaderName;
use http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE};

use super::fields::RequestFields;

/// The values that distinguish one version of a file from another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Validators<'a> {
    /// The entity tag as it is sent: `"…"` or `W/"…"`. `None` if the response has none. Then
    /// only `*` matches in `If-Match` and `If-None-Match`.
    pub(crate) etag: Option<&'a [u8]>,
    /// The time in `Last-Modified`, in seconds since the Unix epoch. `None` if the response does
    /// not have this header.
    pub(crate) last_modified: Option<u64>,
    /// Whether the file last changed long enough ago that any later change would get a different
    /// timestamp. If not, a date does not count as a strong validator, because the file may change
    /// again without changing its date.
    pub(crate) is_stable: bool,
}

/// The outcome of the preconditions of a GET or HEAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PreconditionOutcome {
    /// Respond as if there were no preconditions.
    Proceed,
    /// Respond with 304.
    NotModified,
    /// Respond with 412.
    Failed,
}

/// Evaluates steps 1 to 4 of RFC 9110 §13.2.2: all preconditions except for `If-Range`.
pub(crate) fn check(
    headers: &impl RequestFields,
    validators: Validators<'_>,
) -> PreconditionOutcome {
    let unmodified_since = |name| {
        let modified = validators.last_modified?;
        date(headers, name).map(|date| modified <= date)
    };
    let passed = match matches(headers, IF_MATCH, validators.etag, strong) {
        Some(matched) => matched,
        None => unmodified_since(IF_UNMODIFIED_SINCE).unwrap_or(true),
    };
    if !passed {
        return PreconditionOutcome::Failed;
    }
    let is_known = match matches(headers, IF_NONE_MATCH, validators.etag, weak) {
        Some(matched) => matched,
        None => unmodified_since(IF_MODIFIED_SINCE).unwrap_or(false),
    };
    if is_known {
        PreconditionOutcome::NotModified
    } else {
        PreconditionOutcome::Proceed
    }
}

/// Evaluates step 5 of RFC 9110 §13.2.2: returns whether the `Range` field applies. It applies if
/// there is no `If-Range`, or if the validator in `If-Range` is strong and matches that of the file
/// (§13.1.5).
///
/// A date is a strong validator only if the file cannot have changed twice within that second
/// (§8.8.2.2), which is certain only if the file is [stable](Validators::is_stable).
pub(crate) fn range_applies(headers: &impl RequestFields, validators: Validators<'_>) -> bool {
    let mut lines = headers.values(&IF_RANGE);
    let Some(line) = lines.next() else {
        return true;
    };
    if lines.next().is_some() {
        return false;
    }
    if let Some((tag, [])) = split_tag(line) {
        return validators.etag.is_some_and(|etag| strong(tag, etag));
    }
    let date = date(headers, IF_RANGE);
    validators.is_stable && date.is_some() && date == validators.last_modified
}

/// Returns whether the field `name`, which is a list of entity tags or `*`, matches `etag`. Tags
/// are compared with `equal`. Returns `None` if the field is absent.
fn matches(
    headers: &impl RequestFields,
    name: HeaderName,
    etag: Option<&[u8]>,
    equal: fn(&[u8], &[u8]) -> bool,
) -> Option<bool> {
    let mut lines = headers.values(&name).peekable();
    lines.peek()?;
    Some(lines.any(|line| {
        let line = line.trim_ascii();
        line == b"*" || etag.is_some_and(|etag| tags(line).any(|tag| equal(tag, etag)))
    }))
}

/// Returns the entity tags in a list, up to the first malformed one. The list cannot simply be
/// split at its commas, because a tag may contain commas.
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

/// Splits `text` after the entity tag at its start. Returns `None` if there is no tag.
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

/// Returns the date of a field, in seconds since the Unix epoch. Returns `None` if the field is
/// absent, malformed or repeated.
fn date(headers: &impl RequestFields, name: HeaderName) -> Option<u64> {
    let mut lines = headers.values(&name);
    let (line, None) = (lines.next()?, lines.next()) else {
        return None;
    };
    let date = httpdate::parse_http_date(str::from_utf8(line).ok()?).ok()?;
    date.duration_since(UNIX_EPOCH)
        .ok()
        .map(|since| since.as_secs())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::HeaderMap;
    use http::header::HeaderValue;

    use super::PreconditionOutcome::{Failed, NotModified, Proceed};
    use super::*;

    const BEFORE: &str = "Thu, 01 Jan 1970 00:00:09 GMT";
    const SAME: &str = "Thu, 01 Jan 1970 00:00:10 GMT";
    const AFTER: &str = "Thu, 01 Jan 1970 00:00:11 GMT";

    const STRONG: Validators<'_> = Validators {
        etag: Some(b"\"tag\""),
        last_modified: Some(10),
        is_stable: true,
    };
    const WEAK: Validators<'_> = Validators {
        etag: Some(b"W/\"tag\""),
        last_modified: Some(10),
        is_stable: false,
    };

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn verdict(lines: &[(&str, &str)]) -> PreconditionOutcome {
        check(&headers(lines), STRONG)
    }

    #[test]
    fn if_match_compares_strongly() {
        assert_eq!(verdict(&[("if-match", "\"tag\"")]), Proceed);
        assert_eq!(verdict(&[("if-match", "*")]), Proceed);
        assert_eq!(verdict(&[("if-match", "\"x\", W/\"tag\"")]), Failed);
        assert_eq!(verdict(&[("if-match", "\"x\",\"tag\"")]), Proceed);
        assert_eq!(
            verdict(&[("if-match", "\"x\""), ("if-match", "\"tag\"")]),
            Proceed
        );
        assert_eq!(verdict(&[("if-match", "tag")]), Failed);
        assert_eq!(check(&headers(&[("if-match", "W/\"tag\"")]), WEAK), Failed);
        assert_eq!(check(&headers(&[("if-match", "*")]), WEAK), Proceed);
    }

    #[test]
    fn if_unmodified_since_applies_without_if_match() {
        assert_eq!(verdict(&[("if-unmodified-since", BEFORE)]), Failed);
        assert_eq!(verdict(&[("if-unmodified-since", SAME)]), Proceed);
        assert_eq!(verdict(&[("if-unmodified-since", AFTER)]), Proceed);
        assert_eq!(verdict(&[("if-unmodified-since", "yesterday")]), Proceed);
        assert_eq!(
            verdict(&[("if-unmodified-since", BEFORE), ("if-match", "\"tag\"")]),
            Proceed
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
        assert_eq!(verdict(&[("if-none-match", "\"x\"")]), Proceed);
        assert_eq!(verdict(&[("if-none-match", "tag")]), Proceed);
        assert_eq!(
            check(&headers(&[("if-none-match", "\"tag\"")]), WEAK),
            NotModified
        );
    }

    #[test]
    fn if_modified_since_applies_without_if_none_match() {
        assert_eq!(verdict(&[("if-modified-since", BEFORE)]), Proceed);
        assert_eq!(verdict(&[("if-modified-since", SAME)]), NotModified);
        assert_eq!(verdict(&[("if-modified-since", AFTER)]), NotModified);
        assert_eq!(verdict(&[("if-modified-since", "0")]), Proceed);
        assert_eq!(
            verdict(&[("if-modified-since", SAME), ("if-modified-since", SAME)]),
            Proceed
        );
        assert_eq!(
            verdict(&[("if-modified-since", AFTER), ("if-none-match", "\"x\"")]),
            Proceed
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
    fn date_conditions_are_ignored_for_a_file_without_a_date() {
        let undated = Validators {
            last_modified: None,
            ..STRONG
        };
        for name in ["if-unmodified-since", "if-modified-since"] {
            assert_eq!(check(&headers(&[(name, BEFORE)]), undated), Proceed);
            assert_eq!(check(&headers(&[(name, AFTER)]), undated), Proceed);
        }
    }

    #[test]
    fn without_a_tag_only_the_wildcard_matches() {
        let untagged = Validators {
            etag: None,
            ..STRONG
        };
        let outcome = |lines| check(&headers(lines), untagged);
        assert_eq!(outcome(&[("if-match", "*")]), Proceed);
        assert_eq!(outcome(&[("if-match", "\"tag\"")]), Failed);
        assert_eq!(outcome(&[("if-none-match", "*")]), NotModified);
        let both = [("if-none-match", "\"tag\""), ("if-modified-since", SAME)];
        assert_eq!(outcome(&both), Proceed);
        assert_eq!(outcome(&[("if-modified-since", SAME)]), NotModified);
        assert!(!range_applies(
            &headers(&[("if-range", "\"tag\"")]),
            untagged
        ));
        assert!(range_applies(&headers(&[("if-range", SAME)]), untagged));
    }

    #[test]
    fn if_range_requires_a_strong_validator() {
        let applies =
            |value, validators| range_applies(&headers(&[("if-range", value)]), validators);
        assert!(range_applies(&HeaderMap::new(), WEAK));
        assert!(applies("\"tag\"", STRONG));
        assert!(applies(SAME, STRONG));
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
            assert!(!applies(value, STRONG), "{value}");
        }
        for value in ["\"tag\"", "W/\"tag\"", SAME] {
            assert!(!applies(value, WEAK), "{value}");
        }
        assert!(!applies(
            SAME,
            Validators {
                last_modified: None,
                ..STRONG
            }
        ));
        let twice = headers(&[("if-range", "\"tag\""), ("if-range", "\"tag\"")]);
        assert!(!range_applies(&twice, STRONG));
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
