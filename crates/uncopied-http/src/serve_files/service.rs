//! The service, and the future that resolves to its response.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready as poll_ready};

use http::request::Parts;
use http::{Request, Response, StatusCode};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tower_service::Service;

use super::cache::entry::Entry;
use super::cache::revalidation::{GroupMember, RevalidationGroup};
use super::respond::{NeedsDisk, respond};
use super::site::Site;
use crate::body::FileBody;
use crate::open_file::DiskAccess;

/// Serves the files of a directory, or one file, over HTTP.
///
/// It is a `tower` service whose bodies go out by zero copy if the stream under the server is one
/// of this crate, and as ordinary bytes everywhere else. Clones are cheap and share their open
/// files.
///
/// ```
/// use axum::{Router, routing::get};
/// use uncopied_http::ServeFiles;
///
/// # fn app() -> std::io::Result<Router> {
/// let files = ServeFiles::builder(".").listing(true).build()?;
/// let app = Router::new()
///     .route("/hello", get(|| async { "Hello!" }))
///     .nest_service("/docs", ServeFiles::new(".")?)
///     .fallback_service(files);
/// # Ok(app)
/// # }
/// # assert!(app().is_ok());
/// ```
///
/// # Responses
///
/// | request | response |
/// |---|---|
/// | GET, HEAD | the file, by RFC 9110: preconditions in its order, then ranges |
/// | OPTIONS | 204 with `Allow` |
/// | any other method | 405 with `Allow` |
/// | a directory | its index file; else a listing if enabled; else 404, as Caddy does |
/// | a directory without its slash at the end | 301 to `./name/`, relative to the request |
/// | a path that is malformed, or has an encoded `/` or NUL | 400 |
/// | `..`, dotfiles, links out of the root, FIFOs, sockets, devices | 404 |
/// | a file that may not be read | 403 |
/// | no descriptor or memory left | 503 with `Retry-After` |
/// | several ranges | `multipart/byteranges`; ranges that overlap or touch are merged |
/// | more than 16 ranges, or more bytes than the file has | 200 with the whole file |
///
/// An `ETag` is strong once the file's last change is old enough that a further one would show.
/// Until then it is weak.
///
/// A single file is served at `/` and at its own name.
///
/// # Never stale
///
/// Files are kept open between requests. For each request, one `statx` asks the kernel whether the
/// path still leads to the same unchanged file, so the next request after a file is replaced,
/// changed or removed sees that. Requests that wait at the same time for the same file share the
/// `statx`, which is made after the last of them has arrived.
///
/// # Stability of the bytes
///
/// The bytes of a large file are those that it has when they are *sent*: if it is rewritten in
/// place during a response, the client can receive some old and some new bytes. Replace files by
/// renaming over them.
#[derive(Clone, Debug)]
pub struct ServeFiles {
    site: Arc<Site>,
}

impl From<Site> for ServeFiles {
    fn from(site: Site) -> Self {
        let site = Arc::new(site);
        Self { site }
    }
}

impl ServeFiles {
    /// Responds to one request. The same as the service's `call`, without `&mut`.
    ///
    /// If the page cache has all that is needed, the response is ready at once, or after the tasks
    /// that are ready have run. Work that needs the disk, and directory listings, run on tokio's
    /// blocking pool; outside of a tokio runtime, they run on this thread.
    ///
    /// # Cancellation
    ///
    /// Dropping the future drops the response. Work on a blocking thread runs to its end.
    pub fn respond<B>(&self, request: Request<B>) -> ResponseFuture {
        let (parts, _) = request.into_parts();
        let cached = self.site.peek_cached(&parts);
        let state = match cached.and_then(|entry| Some((entry, RevalidationGroup::join()?))) {
            Some((entry, member)) => ResponseState::Revalidating(Some(PendingRevalidation {
                site: Arc::clone(&self.site),
                parts,
                entry,
                member,
            })),
            None => ResponseState::start(&self.site, parts, None),
        };
        ResponseFuture { state }
    }
}

impl<B> Service<Request<B>> for ServeFiles {
    type Response = Response<FileBody>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        self.respond(request)
    }
}

/// Resolves to the response of [`ServeFiles`], which usually is ready already.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture {
    state: ResponseState,
}

#[derive(Debug)]
enum ResponseState {
    Ready(Ready<Response<FileBody>>),
    OnBlockingPool(JoinHandle<Response<FileBody>>),
    Revalidating(Option<PendingRevalidation>),
}

/// A request whose file is in the cache, before the check that the entry is still current.
#[derive(Debug)]
struct PendingRevalidation {
    site: Arc<Site>,
    parts: Parts,
    entry: Arc<Entry>,
    member: GroupMember,
}

impl ResponseState {
    /// Responds now if the disk is not needed. `current` is the file, if it is known.
    fn start(site: &Arc<Site>, parts: Parts, current: Option<Arc<Entry>>) -> Self {
        if let Ok(response) = respond(site, &parts, current, DiskAccess::CachedOnly) {
            return Self::Ready(ready(response));
        }
        let site = Arc::clone(site);
        let work = move || {
            let response = respond(&site, &parts, None, DiskAccess::MayBlock);
            response.unwrap_or_else(|NeedsDisk| internal_error())
        };
        match Handle::try_current() {
            Ok(runtime) => Self::OnBlockingPool(runtime.spawn_blocking(work)),
            Err(_) => Self::Ready(ready(work())),
        }
    }
}

impl PendingRevalidation {
    fn finish(self) -> ResponseState {
        let is_current = self.member.group.is_current(&self.entry);
        ResponseState::start(&self.site, self.parts, is_current.then_some(self.entry))
    }
}

impl Future for ResponseFuture {
    type Output = Result<Response<FileBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match &mut self.state {
                ResponseState::Ready(response) => return Pin::new(response).poll(cx).map(Ok),
                // The work is lost only if the runtime shuts down before it begins.
                ResponseState::OnBlockingPool(work) => {
                    let response = poll_ready!(Pin::new(work).poll(cx));
                    return Poll::Ready(Ok(response.unwrap_or_else(|_| internal_error())));
                }
                ResponseState::Revalidating(Some(pending)) if pending.member.must_yield => {
                    pending.member.must_yield = false;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                ResponseState::Revalidating(pending) => {
                    let next = pending.take().map(PendingRevalidation::finish);
                    self.state = next.unwrap_or_else(|| {
                        // `finish` always leaves another state behind.
                        ResponseState::Ready(ready(internal_error()))
                    });
                }
            }
        }
    }
}

fn internal_error() -> Response<FileBody> {
    let mut response = Response::new(FileBody::empty());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}
