//! The header fields of a request, as a program has parsed them.

use http::{HeaderMap, HeaderName};

/// The header fields of a request, in the order in which they arrived.
///
/// Implemented for [`HeaderMap`]. A server that parses requests itself can implement this trait for
/// its own list of fields, so that it need not copy them into a map.
pub trait RequestFields {
    /// Returns the name and the value of each field. The value must not have white space at either
    /// end. Names are compared without regard to case.
    fn iter(&self) -> impl Iterator<Item = (&str, &[u8])>;

    /// Returns the values of all fields with this name.
    #[doc(hidden)]
    fn values<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        self.iter()
            .filter(|(other, _)| name.as_str().eq_ignore_ascii_case(other))
            .map(|(_, value)| value)
    }
}

impl RequestFields for HeaderMap {
    fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        HeaderMap::iter(self).map(|(name, value)| (name.as_str(), value.as_bytes()))
    }
}
