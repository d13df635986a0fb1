//! Checks and decodes request paths. Does no I/O.

use std::borrow::Cow;
use std::ffi::CString;

use http::StatusCode;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_encode};

/// The only name beginning with a dot that is served by default (RFC 8615). It is served only
/// directly beneath the root.
const WELL_KNOWN: &[u8] = b".well-known";

/// The characters that are escaped in a URL: all except those that RFC 3986 calls unreserved.
const ESCAPED_CHARACTERS: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A request path that has been checked and decoded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RequestPath {
    /// The decoded names, separated by single slashes, without a leading slash. No name is empty,
    /// `.` or `..`, and none contains a NUL. Empty for the root.
    relative: Vec<u8>,
    /// Whether the request's path ended in a slash.
    pub(crate) is_directory: bool,
}

impl RequestPath {
    /// Checks the path of a request, and decodes its percent escapes exactly once.
    ///
    /// Fails with 400 if the path is malformed (a broken percent escape, an encoded `/` or NUL).
    /// Fails with 404 if the path contains the name `.` or `..`. Unless `hidden` is true, also
    /// fails with 404 if the path contains any other name that begins with a dot, except for
    /// [`WELL_KNOWN`] directly beneath the root.
    pub(crate) fn parse(path: &str, hidden: bool) -> Result<Self, StatusCode> {
        let segments = path.strip_prefix('/').ok_or(StatusCode::BAD_REQUEST)?;
        let mut relative = Vec::with_capacity(segments.len());
        for segment in segments.split('/').filter(|segment| !segment.is_empty()) {
            let name = decode(segment)?;
            let is_dots = matches!(&*name, b"." | b"..");
            if is_dots || !(hidden || is_visible(&name, relative.is_empty())) {
                return Err(StatusCode::NOT_FOUND);
            }
            if !relative.is_empty() {
                relative.push(b'/');
            }
            relative.extend_from_slice(&name);
        }
        Ok(Self {
            relative,
            is_directory: path.ends_with('/'),
        })
    }

    /// Whether this is the root itself.
    pub(crate) fn is_root(&self) -> bool {
        self.relative.is_empty()
    }

    /// Returns the path beneath the root, without a slash at either end.
    pub(crate) fn relative(&self) -> &[u8] {
        &self.relative
    }

    /// Returns the path of `name` in this directory.
    pub(crate) fn child(&self, name: &[u8]) -> Result<CString, StatusCode> {
        let slash: &[u8] = if self.is_root() { b"" } else { b"/" };
        to_c_path([&self.relative, slash, name].concat())
    }

    /// Returns this path as a C string for system calls.
    pub(crate) fn to_c_path(&self) -> Result<CString, StatusCode> {
        to_c_path(if self.is_root() {
            b".".to_vec()
        } else {
            self.relative.clone()
        })
    }

    /// Returns the redirect target for a request that left out the trailing slash of a directory.
    ///
    /// The target is relative to the request's own URL (RFC 3986 §5.2), so it remains correct if a
    /// router or a proxy has removed a prefix from the path. The target begins with `./`, so that
    /// it cannot name another host, as `//evil.example/` would.
    pub(crate) fn with_slash(&self, query: Option<&str>) -> String {
        let name = self
            .relative
            .rsplit(|byte| *byte == b'/')
            .next()
            .unwrap_or_default();
        let name = percent_encode_name(name);
        match query {
            Some(query) => format!("./{name}/?{query}"),
            None => format!("./{name}/"),
        }
    }
}

/// Whether requests can reach `name` even if hidden files are not served. `at_root` means that
/// `name` is directly beneath the root.
pub(crate) fn is_visible(name: &[u8], at_root: bool) -> bool {
    name.first() != Some(&b'.') || (at_root && name == WELL_KNOWN)
}

/// Escapes a file name for use in a URL.
pub(crate) fn percent_encode_name(name: &[u8]) -> String {
    percent_encode(name, ESCAPED_CHARACTERS).to_string()
}

/// Converts a path to a C string for system calls. Fails with 400 if the path contains a NUL, which
/// cannot happen for a path from [`RequestPath::parse`].
pub(crate) fn to_c_path(path: Vec<u8>) -> Result<CString, StatusCode> {
    CString::new(path).map_err(|_| StatusCode::BAD_REQUEST)
}

fn decode(segment: &str) -> Result<Cow<'_, [u8]>, StatusCode> {
    let bytes = segment.as_bytes();
    let is_whole = |(at, byte): (usize, &u8)| {
        *byte != b'%'
            || bytes
                .get(at + 1..at + 3)
                .is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
    };
    if !bytes.iter().enumerate().all(is_whole) {
        return Err(StatusCode::BAD_REQUEST);
    }
    let name = Cow::from(percent_decode(bytes));
    if name.contains(&0) || name.contains(&b'/') {
        return Err(StatusCode::BAD_REQUEST);
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn check(path: &str) -> Result<Vec<u8>, u16> {
        RequestPath::parse(path, false)
            .map(|request_path| request_path.relative)
            .map_err(|status| status.as_u16())
    }

    #[test]
    fn plain_paths_pass() {
        assert_eq!(check("/"), Ok(b"".to_vec()));
        assert_eq!(check("/a/b.txt"), Ok(b"a/b.txt".to_vec()));
        assert_eq!(check("/a%20b/%C3%A9"), Ok("a b/é".as_bytes().to_vec()));
        assert_eq!(check("/a\\b"), Ok(b"a\\b".to_vec()));
        assert!(RequestPath::parse("/a/", false).unwrap().is_directory);
        assert!(!RequestPath::parse("/a", false).unwrap().is_directory);
    }

    #[test]
    fn consecutive_slashes_count_as_one() {
        assert_eq!(check("//a///b//"), Ok(b"a/b".to_vec()));
    }

    #[test]
    fn escapes_are_decoded_exactly_once() {
        assert_eq!(check("/%252e%252e/a"), Ok(b"%2e%2e/a".to_vec()));
        assert_eq!(check("/100%25"), Ok(b"100%".to_vec()));
    }

    #[test]
    fn malformed_paths_are_bad_requests() {
        for path in [
            "",
            "*",
            "a",
            "/%",
            "/%4",
            "/%zz",
            "/%+1",
            "/a%00",
            "/..%2fetc",
            "/a%2Fb",
        ] {
            assert_eq!(check(path), Err(400), "{path}");
        }
    }

    #[test]
    fn parents_and_dotfiles_are_not_found() {
        for path in [
            "/..",
            "/a/../b",
            "/%2e%2e/a",
            "/.%2E",
            "/.",
            "/./a",
            "/.git/config",
            "/a/.x",
        ] {
            assert_eq!(check(path), Err(404), "{path}");
        }
        assert_eq!(check("/.well-known/acme"), Ok(b".well-known/acme".to_vec()));
        assert_eq!(check("/a/.well-known"), Err(404));
    }

    #[test]
    fn hidden_files_pass_when_allowed_but_parents_never() {
        assert!(RequestPath::parse("/.git/config", true).is_ok());
        assert_eq!(
            RequestPath::parse("/a/..", true),
            Err(StatusCode::NOT_FOUND)
        );
        assert_eq!(RequestPath::parse("/.", true), Err(StatusCode::NOT_FOUND));
    }

    #[test]
    fn redirects_stay_on_the_host_and_keep_the_query() {
        let redirect = |path, query| RequestPath::parse(path, false).unwrap().with_slash(query);
        assert_eq!(redirect("/dir", None), "./dir/");
        assert_eq!(redirect("/a/dir", Some("x=1&y=/2")), "./dir/?x=1&y=/2");
        assert_eq!(redirect("//evil.example", None), "./evil.example/");
        assert_eq!(
            redirect("/javascript:alert(1)", None),
            "./javascript%3Aalert%281%29/"
        );
    }

    proptest! {
        #[test]
        fn no_path_escapes_the_root(path in "(/|\\.|%2e|%2E|%2f|%5c|%00|%25|a|b|\\\\){0,24}", hidden: bool) {
            if let Ok(request_path) = RequestPath::parse(&format!("/{path}"), hidden) {
                prop_assert!(!request_path.relative.starts_with(b"/"));
                prop_assert!(!request_path.relative.contains(&0));
                for name in request_path.relative.split(|byte| *byte == b'/') {
                    prop_assert!(name != b".." && name != b".");
                    prop_assert!(!name.is_empty() || request_path.is_root());
                    prop_assert!(hidden || !name.starts_with(b"."));
                }
                let location = request_path.with_slash(None);
                prop_assert!(location.starts_with("./") && !location.contains("\\"));
            }
        }

        #[test]
        fn every_name_survives_escaping(name in proptest::collection::vec(1..=255_u8, 1..20)) {
            prop_assume!(!name.contains(&b'/') && name != b"." && name != b"..");
            let request_path = RequestPath::parse(&format!("/{}", percent_encode_name(&name)), true).unwrap();
            prop_assert_eq!(request_path.relative, name);
        }
    }
}
