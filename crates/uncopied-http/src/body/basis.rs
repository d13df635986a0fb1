//! The condition under which a response remains valid. The body of the response carries it.

use std::any::Any;
use std::sync::Weak;

/// The condition under which a response of [`ServeFiles`](crate::ServeFiles) remains valid: the
/// request path still leads to the same, unchanged file. If the client would have accepted a
/// precompressed version of the file, there must also still be no such version. Apart from the
/// request itself, the response depends on nothing else.
///
/// As long as a [check](Self::check) succeeds, a request with the same bytes gets a response with
/// the same bytes, except for its `Date`. So a server that has kept the response head can send it
/// again without calling the service. Such a response is never stale, because the check queries the
/// kernel, as the service itself does for each request.
///
/// A response has a basis only if its body is a whole file. That file must not have been chosen
/// among precompressed files, must not be served in place of a missing one, and must not have
/// changed within the last few seconds.
///
/// A basis keeps neither the file nor the service alive. Checks fail once the service has been
/// dropped, or has removed the file from its cache of open files.
#[derive(Clone, Debug)]
pub struct Basis {
    /// The entry in the service's cache of open files from which the response was made. Its
    /// concrete type is hidden so that bodies do not depend on the service. Only the service
    /// downcasts it.
    pub(crate) entry: Weak<dyn Any + Send + Sync>,
    /// Whether the response also depends on the absence of precompressed files: it would change if
    /// one were created.
    pub(crate) without_precompressed: bool,
}
