//! What keeps a response valid, in the form in which its body carries it.

use std::any::Any;
use std::sync::Weak;

/// What keeps a cached response of [`ServeFiles`](crate::ServeFiles) valid: one whole file at the
/// path of the request. The response depends on nothing else but the request.
///
/// As long as a [check](Self::check) succeeds, a request with the same bytes has a response with
/// the same bytes, except for its `Date`. A server that keeps the head of the response can
/// therefore send it again without making it again. Such a response is never stale: the check
/// queries the kernel, as a look-up in the cache of open files does.
///
/// Only a whole file has a basis, and only if it was not chosen among precompressed files, is not
/// served in place of a missing one, and did not change a moment ago.
///
/// A basis keeps neither the file nor the service alive. Once either is gone, its checks fail.
#[derive(Clone, Debug)]
pub struct Basis {
    /// The entry in the cache of open files from which the response was made. Its type belongs to
    /// the service, which is the only one to look inside: bodies do not depend on it.
    pub(crate) entry: Weak<dyn Any + Send + Sync>,
    /// Whether the response also depends on the absence of precompressed files.
    pub(crate) without_precompressed: bool,
}
