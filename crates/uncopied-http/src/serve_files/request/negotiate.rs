//! Evaluates `Accept-Encoding` and `Accept` (RFC 9110 §12.5). Does no I/O.

/// A content coding that a precompressed file may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Brotli,
    Zstd,
    Gzip,
}

impl Coding {
    /// All codings in order of preference, starting with the one that usually makes the smallest
    /// file.
    pub(crate) const ALL: [Self; 3] = [Self::Brotli, Self::Zstd, Self::Gzip];

    /// The name in `Accept-Encoding` and `Content-Encoding`.
    pub(crate) fn token(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    /// The suffix of the names of precompressed files with this coding.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Brotli => ".br",
            Self::Zstd => ".zst",
            Self::Gzip => ".gz",
        }
    }

    fn is_named(self, token: &str) -> bool {
        token.eq_ignore_ascii_case(self.token())
            || (self == Self::Gzip && token.eq_ignore_ascii_case("x-gzip"))
    }
}

/// A weight of 1, in thousandths.
const FULL_WEIGHT: u16 = 1000;

/// Returns the codings of the precompressed files to look for, best first: those that the client
/// accepts and does not rank below `identity`. If none of these files exists, the original file is
/// sent.
///
/// The original file is sent even to a client that refuses `identity`, because a 406 response would
/// not help the client. Common servers do the same.
pub(crate) fn codings<'a>(
    lines: impl IntoIterator<Item = &'a [u8]>,
) -> impl Iterator<Item = Coding> {
    let (mut named, mut others, mut identity) = ([None; 3], None, None);
    for (token, weight) in lines.into_iter().flat_map(elements) {
        if token == "*" {
            others = Some(weight);
        } else if token.eq_ignore_ascii_case("identity") {
            identity = Some(weight);
        } else if let Some(at) = Coding::ALL.iter().position(|coding| coding.is_named(token)) {
            named[at] = Some(weight);
        }
    }
    let min_weight = identity.unwrap_or(0).max(1);
    let mut ranked = [0, 1, 2].map(|at| (named[at].or(others).unwrap_or(0), Coding::ALL[at]));
    // The sort is stable, so codings of equal weight stay in the order of `Coding::ALL`.
    ranked.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    ranked
        .into_iter()
        .filter(move |(weight, _)| *weight >= min_weight)
        .map(|(_, coding)| coding)
}

/// Whether `Accept` prefers `application/json` to `text/html`. Each type's weight is that of the
/// most specific media range that covers the type.
pub(crate) fn prefers_json<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> bool {
    let (mut json, mut html) = ((0, 0), (0, 0));
    for (range, weight) in lines.into_iter().flat_map(elements) {
        json = json.max(coverage(range, weight, "application", "json"));
        html = html.max(coverage(range, weight, "text", "html"));
    }
    json.1 > html.1
}

/// Whether `Accept` names `text/html` explicitly, with a weight above 0.
pub(crate) fn names_html<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> bool {
    lines
        .into_iter()
        .flat_map(elements)
        .any(|(range, weight)| weight > 0 && range.eq_ignore_ascii_case("text/html"))
}

/// Returns how specifically the media range `range` covers the type `main/sub`, from 1 (`*/*`) to 3
/// (the exact type), along with `weight`. Returns zeros if the range does not cover the type.
fn coverage(range: &str, weight: u16, main: &str, sub: &str) -> (u8, u16) {
    match range.split_once('/') {
        Some(("*", "*")) => (1, weight),
        Some((a, "*")) if a.eq_ignore_ascii_case(main) => (2, weight),
        Some((a, b)) if a.eq_ignore_ascii_case(main) && b.eq_ignore_ascii_case(sub) => (3, weight),
        _ => (0, 0),
    }
}

/// Returns the elements of a comma-separated list, each with its weight in thousandths. Leaves out
/// elements with a malformed weight.
fn elements(line: &[u8]) -> impl Iterator<Item = (&str, u16)> {
    str::from_utf8(line)
        .unwrap_or_default()
        .split(',')
        .filter_map(|element| {
            let mut parts = element.split(';').map(str::trim);
            let token = parts.next().filter(|token| !token.is_empty())?;
            let weight = parts.find_map(|part| {
                part.split_once('=')
                    .filter(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
            });
            match weight {
                None => Some((token, FULL_WEIGHT)),
                Some((_, value)) => Some((token, thousandths(value.trim())?)),
            }
        })
}

/// Parses a `qvalue`, 0 to 1 with up to three decimals, into thousandths.
fn thousandths(value: &str) -> Option<u16> {
    let (whole, decimals) = value.split_once('.').unwrap_or((value, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let decimals = decimals.bytes().chain(*b"000").take(3);
    let decimals = decimals.fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    match (whole, decimals) {
        ("0", decimals) => Some(decimals),
        ("1", 0) => Some(FULL_WEIGHT),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::Coding::{Brotli, Gzip, Zstd};
    use super::*;

    fn order(lines: &[&'static str]) -> Vec<Coding> {
        codings(lines.iter().map(|line| line.as_bytes())).collect()
    }

    #[test]
    fn equal_weights_keep_the_default_order() {
        assert_eq!(order(&["gzip, deflate, br, zstd"]), [Brotli, Zstd, Gzip]);
        assert_eq!(order(&["gzip", "br"]), [Brotli, Gzip]);
    }

    #[test]
    fn higher_weights_come_first_and_zero_excludes() {
        assert_eq!(order(&["br;q=0.5, gzip;q=0.8, zstd;q=0"]), [Gzip, Brotli]);
        assert_eq!(order(&["br;q=0.001 , gzip ; q=1.000"]), [Gzip, Brotli]);
        assert_eq!(order(&["X-GZIP;Q=0.2"]), [Gzip]);
    }

    #[test]
    fn the_wildcard_covers_codings_that_are_not_named() {
        assert_eq!(order(&["*"]), [Brotli, Zstd, Gzip]);
        assert_eq!(order(&["br;q=0, *;q=0.5"]), [Zstd, Gzip]);
        assert_eq!(order(&["gzip, *;q=0"]), [Gzip]);
    }

    #[test]
    fn identity_excludes_codings_of_lower_weight() {
        assert_eq!(order(&["identity"]), []);
        assert_eq!(order(&["identity;q=0.9, gzip;q=0.5, br"]), [Brotli]);
        assert_eq!(order(&["identity;q=0, gzip;q=0.1"]), [Gzip]);
    }

    #[test]
    fn malformed_elements_are_left_out() {
        assert_eq!(order(&[""]), []);
        assert_eq!(order(&["deflate, , ;q=1"]), []);
        assert_eq!(order(&["br;q=2, zstd;q=1.5, gzip;q=0.1234"]), []);
        assert_eq!(order(&["br;q=, zstd;q=a, gzip;q=-1"]), []);
    }

    #[test]
    fn accept_decides_between_html_and_json() {
        let json = |accept| prefers_json([str::as_bytes(accept)]);
        assert!(json("application/json"));
        assert!(json("text/html;q=0.5, application/json"));
        assert!(json("text/*;q=0.1, */*;q=0.2"));
        assert!(!json("*/*"));
        assert!(!json("text/html,application/xhtml+xml,*/*;q=0.8"));
        assert!(!json("application/json;q=0.5, */*"));
        assert!(!prefers_json([]));
    }

    #[test]
    fn html_must_be_named() {
        let html = |accept| names_html([str::as_bytes(accept)]);
        assert!(html("text/html,application/xhtml+xml,*/*;q=0.8"));
        assert!(!html("*/*"));
        assert!(!html("text/html;q=0"));
    }
}
