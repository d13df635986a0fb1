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
use super::current_site::CurrentSite;
use super::file_response::FileResponse;
use super::mounted;
use super::request::fields::RequestFields;
use super::respond::{NeedsDisk, RequestTarget, error_response, respond};
use super::site::Site;
use crate::body::FileBody;
use crate::open_file::DiskAccess;

/// Serves the files of a directory, or one file, over HTTP.
///
/// This is a `tower` service. If the server's connection is a [`Stream`](crate::Stream), files are
/// sent without a copy, except for small files, which are [kept in
/// memory](crate::ServeFilesBuilder::in_memory_max_bytes). Over any other connection, files are
/// sent as ordinary bytes. Clones of the service are cheap, and share the files that are open.
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
/// | GET, HEAD | the file; preconditions first, then ranges, as in RFC 9110 |
/// | OPTIONS | 204 with `Allow` |
/// | any other method | 405 with `Allow` |
/// | a directory | its index file; or else a listing, if enabled; or else 404, as with Caddy |
/// | a directory, without the trailing slash | 301 to `./name/`, relative to the request |
/// | the place at which axum has nested the service, without the slash | the same |
/// | a path that is malformed, or has an encoded `/` or NUL | 400 |
/// | `..`, dotfiles, links out of the root, FIFOs, sockets, devices | 404 |
/// | files whose length is unknown, as the kernel generates them in procfs and sysfs | 404 |
/// | a file that the process may not read | 403 |
/// | any file, while no descriptor or memory is left to open it | 503 with `Retry-After` |
/// | any file, while there is [no root](Self::follow_root) | 503 with `Retry-After` |
/// | several ranges | `multipart/byteranges`; ranges that overlap or touch are merged |
/// | more than 16 ranges, or ranges longer in total than the file | 200 with the whole file |
///
/// An `ETag` is made from the modification time and the length of the file, so that all servers of
/// a fleet send the same one (see [`entity_tags`](super::ServeFilesBuilder::entity_tags)). It is
/// weak at first. It is strong once the file's last change is so old that any further
/// change would get a different timestamp.
///
/// A single file is served at `/` and at its own name.
///
/// # Never stale
///
/// Files are kept open between requests. For each request, the kernel is asked whether the path
/// still leads to the same, unchanged file, and still stays beneath the root. So when a file is
/// replaced, changed or removed, or a directory is replaced by a link, the very next request sees
/// it. This takes one system call for a file directly beneath the root, and two for a file in a
/// directory. It takes at least three for a deeper file, for a file that is reached through links,
/// and while files are being added to the directory. Requests that wait at the same time share the
/// check of the same file, and that of the same directory, which is made after the last of these
/// requests has arrived.
///
/// The path of the root itself is looked up when the service is built, and then by
/// [`follow_root`](Self::follow_root), which the program should call about once a second. Without
/// such calls, a service keeps serving the directory that it has opened, even if a deployment has
/// replaced it.
///
/// # Stability of the bytes
///
/// The bytes of a large file are read when they are *sent*. If the file is rewritten in place
/// during a response, the client can receive some old and some new bytes. If it is truncated, the
/// connection is closed before the promised length, and the bytes before that can contain zeroes,
/// with which the kernel fills the rest of the last page while that page is in flight. To avoid
/// both, replace a file by renaming a new one over it.
#[derive(Clone, Debug)]
pub struct ServeFiles {
    pub(super) current: Arc<CurrentSite>,
}

impl From<CurrentSite> for ServeFiles {
    fn from(current: CurrentSite) -> Self {
        let current = Arc::new(current);
        Self { current }
    }
}

impl ServeFiles {
    /// Responds to one request. Like the service's `call`, but without `&mut self`.
    ///
    /// If everything that is needed is cached, the response is ready at once, or after the task has
    /// yielded once to other tasks that are ready. Work that needs the disk, and directory
    /// listings, run on tokio's blocking pool, or on the calling thread if there is no tokio
    /// runtime.
    ///
    /// # Cancellation
    ///
    /// Dropping the future drops the response. Work that has begun on a blocking thread still runs
    /// to its end.
    pub fn respond<B>(&self, request: Request<B>) -> ResponseFuture {
        let (parts, _) = request.into_parts();
        let site = self.current.load();
        let state = match cached(&site, target_of(&parts)) {
            Some(file) => ResponseState::Revalidating(Some(PendingRevalidation {
                site: Arc::clone(&site),
                parts,
                file,
            })),
            None => ResponseState::start(&site, parts, None),
        };
        ResponseFuture { state }
    }

    /// Returns the file in the cache that the target of a GET or HEAD leads to. Makes no system
    /// call, so the file may have changed since. Returns `None` also if looking the file up
    /// together with other requests has not paid off recently.
    ///
    /// Pass the file on to [`try_respond`](Self::try_respond). If [`CachedFile::must_yield`] is
    /// true, yield once to the other tasks of the thread before that, so that several requests can
    /// share one `statx`.
    #[must_use]
    pub fn cached(&self, target: RequestTarget<'_>) -> Option<CachedFile> {
        cached(&self.current.load(), target)
    }

    /// Responds to one request, like [`respond`](Self::respond), for a server that parses requests
    /// and writes responses itself. `cached` is what [`cached`](Self::cached) has returned for the
    /// request. A response that sends a whole file from the cache is made without allocating
    /// memory.
    ///
    /// # Errors
    ///
    /// If the disk is needed, or a directory must be listed. Then call [`respond`](Self::respond).
    pub fn try_respond(
        &self,
        target: RequestTarget<'_>,
        fields: &impl RequestFields,
        cached: Option<CachedFile>,
    ) -> Result<FileResponse, NeedsDisk> {
        let site = self.current.load();
        // The root may have been replaced since the file was looked up.
        let cached = cached.filter(|file| file.entry.is_beneath(&site.root));
        let current = cached.and_then(CachedFile::into_current);
        respond(&site, target, fields, None, current, DiskAccess::CachedOnly)
    }

    /// Returns the response to a request that the server itself refuses, such as one that it cannot
    /// parse: the page [configured](crate::ServeFilesBuilder::error_page) for `status` if it is at
    /// hand without waiting for the disk, and otherwise one line of text.
    #[must_use]
    pub fn error_response(&self, status: StatusCode) -> FileResponse {
        error_response(&self.current.load(), status)
    }
}

fn cached(site: &Site, target: RequestTarget<'_>) -> Option<CachedFile> {
    if !matches!(target.method, "GET" | "HEAD") {
        return None;
    }
    let entry = site.cache.peek(target.path.as_bytes())?;
    let member = RevalidationGroup::join()?;
    Some(CachedFile { entry, member })
}

fn target_of(parts: &Parts) -> RequestTarget<'_> {
    let uri = &parts.uri;
    RequestTarget::new(parts.method.as_str(), uri.path(), uri.query())
}

/// A file in the cache of [`ServeFiles`] that a request path leads to. Whether the path still leads
/// to the same, unchanged file has not been checked yet.
#[derive(Debug)]
pub struct CachedFile {
    entry: Arc<Entry>,
    member: GroupMember,
}

impl CachedFile {
    /// Whether the task should yield once before it uses this file.
    #[must_use]
    pub fn must_yield(&self) -> bool {
        self.member.must_yield
    }

    /// Returns the entry if it is still current.
    fn into_current(self) -> Option<Arc<Entry>> {
        let is_current = self.member.group.is_current(&self.entry);
        is_current.then_some(self.entry)
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

/// The future that [`ServeFiles`] returns for a request. The response is usually ready at the first
/// poll.
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

/// A request whose file was found in the cache.
#[derive(Debug)]
struct PendingRevalidation {
    site: Arc<Site>,
    parts: Parts,
    file: CachedFile,
}

impl ResponseState {
    /// Responds at once if that does not need the disk, and otherwise on the blocking pool.
    /// `current` is the file that the request path leads to, if that is already known.
    fn start(site: &Arc<Site>, parts: Parts, current: Option<Arc<Entry>>) -> Self {
        let respond = |site: &Site, parts: &Parts, current, access| {
            let mount = mounted::path_without_slash(parts);
            let target = target_of(parts);
            respond(site, target, &parts.headers, mount, current, access)
        };
        if let Ok(response) = respond(site, &parts, current, DiskAccess::CachedOnly) {
            return Self::Ready(ready(response.into()));
        }
        let site = Arc::clone(site);
        let work = move || {
            let response = respond(&site, &parts, None, DiskAccess::MayBlock);
            response.map_or_else(|NeedsDisk| internal_error(), Response::from)
        };
        match Handle::try_current() {
            Ok(runtime) => Self::OnBlockingPool(runtime.spawn_blocking(work)),
            Err(_) => Self::Ready(ready(work())),
        }
    }
}

impl PendingRevalidation {
    fn finish(self) -> ResponseState {
        ResponseState::start(&self.site, self.parts, self.file.into_current())
    }
}

impl Future for ResponseFuture {
    type Output = Result<Response<FileBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match &mut self.state {
                ResponseState::Ready(response) => return Pin::new(response).poll(cx).map(Ok),
                // The work fails only if it panics, or if the runtime shuts down before the work
                // begins.
                ResponseState::OnBlockingPool(work) => {
                    let response = poll_ready!(Pin::new(work).poll(cx));
                    return Poll::Ready(Ok(response.unwrap_or_else(|_| internal_error())));
                }
                ResponseState::Revalidating(Some(pending)) if pending.file.member.must_yield => {
                    pending.file.member.must_yield = false;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                ResponseState::Revalidating(pending) => {
                    let next = pending.take().map(PendingRevalidation::finish);
                    self.state = next.unwrap_or_else(|| {
                        // Unreachable: `pending` is taken only once, because `finish` returns the
                        // next state.
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
