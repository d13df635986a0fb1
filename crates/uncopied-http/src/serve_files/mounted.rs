//! Recognizes requests for the place at which axum has mounted the service.

use http::request::Parts;

use super::resolve::path::RequestPath;

/// Returns the path of the request's URL if it is the path at which axum has mounted the service,
/// without a slash at its end.
///
/// After `nest_service("/docs", files)`, axum passes on a request for `/docs` as one for `/`, so
/// the service cannot tell it from one for `/docs/`. But at `/docs`, relative links of an index
/// file or of a listing would lead beneath `/`. So such a request must be redirected, like one for
/// a directory inside the root.
#[cfg(feature = "axum")]
pub(super) fn path_without_slash(request: &Parts) -> Option<RequestPath> {
    use axum::extract::{NestedPath, OriginalUri};
    if request.uri.path() != "/" {
        return None;
    }
    // A layer may also have changed the path, to serve `/` at other places. So a redirect is right
    // only if axum says that it has removed a prefix.
    request.extensions.get::<NestedPath>()?;
    let OriginalUri(original) = request.extensions.get()?;
    let path = RequestPath::parse(original.path(), true).ok()?;
    (!path.is_directory).then_some(path)
}

#[cfg(not(feature = "axum"))]
pub(super) fn path_without_slash(_request: &Parts) -> Option<RequestPath> {
    None
}
