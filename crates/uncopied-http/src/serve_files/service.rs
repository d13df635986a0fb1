//! The service, and the future of its responses.

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
use super::cache::revalidation::{Member, Round};
use super::respond::{Ask, WouldBlock};
use super::site::Shared;
use crate::body::FileBody;
use crate::open_file::Wait;

/// Serves the files of a directory, or one file, over HTTP.
///
/// It is a `tower` service whose bodies go out by zero copy where the stream under the server is
/// this crate's, and as ordinary bytes everywhere else. Clones are cheap and share their open
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
/// # What is answered
///
/// | request | answer |
/// |---|---|
/// | GET, HEAD | the file, by RFC 9110: preconditions in its order, then ranges |
/// | OPTIONS | 204 with `Allow` |
/// | any other method | 405 with `Allow` |
/// | a directory | its index file; else a list if allowed; else 404, as Caddy does |
/// | the same without the slash at its end | 301 to a reference relative to the request, `./name/` |
/// | a path that is malformed, has an encoded `/` or NUL | 400 |
/// | `..`, dotfiles, links out of the root, FIFOs, sockets, devices | 404 |
/// | a file that may not be read | 403 |
/// | no descriptor or memory left | 503 with `Retry-After` |
/// | several ranges | `multipart/byteranges`; merged where they overlap or touch |
/// | more than 16 ranges, or more bytes than the file has | 200 with the whole file |
///
/// An `ETag` is strong once the file's last change lies so far back that a further one would show;
/// until then it is weak.
///
/// A single file answers at `/` and at its own name.
///
/// # Never stale
///
/// Files are kept open between requests. For each request the kernel is asked, by one `statx`, whether
/// the path still leads to the same unchanged file, so that a file that was replaced, changed or
/// removed is picked up by the very next request. Requests that wait at the same time for the same
/// file share the question, which is asked after the last of them has come.
///
/// # Stability of the bytes
///
/// The bytes of a large file are those that it has when they are *sent*: one that is rewritten in
/// place during a response can reach the client half old and half new. Replace files by renaming
/// over them.
#[derive(Clone, Debug)]
pub struct ServeFiles {
    shared: Arc<Shared>,
}

impl From<Shared> for ServeFiles {
    fn from(shared: Shared) -> Self {
        let shared = Arc::new(shared);
        Self { shared }
    }
}

impl ServeFiles {
    /// Answers one request. The same as the service's `call`, without `&mut`.
    ///
    /// Whatever the page cache has is answered at once, or after the tasks that are ready have had
    /// their turn. What needs the disk, and lists of directories, are left to tokio's threads for
    /// blocking work; outside of a tokio runtime, they are done here.
    ///
    /// # Cancellation
    ///
    /// Dropping the future drops the answer. Work on a blocking thread runs to its end.
    pub fn respond<B>(&self, request: Request<B>) -> ResponseFuture {
        let (parts, _) = request.into_parts();
        let known = self.shared.cached(&parts);
        let state = match known.and_then(|entry| Some((entry, Round::join()?))) {
            Some((entry, member)) => State::InRound(Some(InRound {
                shared: Arc::clone(&self.shared),
                parts,
                entry,
                member,
            })),
            None => State::of(&self.shared, parts, None),
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

/// The answer of [`ServeFiles`]: usually there already.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture {
    state: State,
}

#[derive(Debug)]
enum State {
    Ready(Ready<Response<FileBody>>),
    Elsewhere(JoinHandle<Response<FileBody>>),
    InRound(Option<InRound>),
}

/// A request whose file is in the cache, before the look whether that is still true.
#[derive(Debug)]
struct InRound {
    shared: Arc<Shared>,
    parts: Parts,
    entry: Arc<Entry>,
    member: Member,
}

impl State {
    /// Answers now if the disk is not needed. `current` is the file, if that is known.
    fn of(shared: &Arc<Shared>, parts: Parts, current: Option<Arc<Entry>>) -> Self {
        if let Ok(response) = shared.answer(Ask::of(&parts), current, Wait::Never) {
            return Self::Ready(ready(response));
        }
        let shared = Arc::clone(shared);
        let work = move || {
            let answer = shared.answer(Ask::of(&parts), None, Wait::ForDisk);
            answer.unwrap_or_else(|WouldBlock| failed())
        };
        match Handle::try_current() {
            Ok(runtime) => Self::Elsewhere(runtime.spawn_blocking(work)),
            Err(_) => Self::Ready(ready(work())),
        }
    }
}

impl InRound {
    fn answer(self) -> State {
        let is_current = self.member.round.is_current(&self.entry);
        State::of(&self.shared, self.parts, is_current.then_some(self.entry))
    }
}

impl Future for ResponseFuture {
    type Output = Result<Response<FileBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match &mut self.state {
                State::Ready(response) => return Pin::new(response).poll(cx).map(Ok),
                // The work is lost only if the runtime shuts down before it begins.
                State::Elsewhere(work) => {
                    let done = poll_ready!(Pin::new(work).poll(cx));
                    return Poll::Ready(Ok(done.unwrap_or_else(|_| failed())));
                }
                State::InRound(Some(request)) if request.member.waits => {
                    request.member.waits = false;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                State::InRound(request) => {
                    let answered = request.take().map(InRound::answer);
                    self.state = answered.unwrap_or_else(|| State::Ready(ready(failed())));
                }
            }
        }
    }
}

fn failed() -> Response<FileBody> {
    let mut response = Response::new(FileBody::empty());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}
