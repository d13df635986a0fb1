//! Passes requests for files that do not exist to another service.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::service::{ResponseFuture, ServeFiles};
use crate::body::FileBody;

impl ServeFiles {
    /// Returns a service that passes a request on to `fallback` if this service would respond with
    /// 404. All other responses are this service's own, including 405 for methods that are not
    /// supported.
    ///
    /// `fallback` takes precedence over a configured
    /// [`error_page`](super::ServeFilesBuilder::error_page) for 404, but not over a configured
    /// [`fallback`](super::ServeFilesBuilder::fallback) page. It gets the whole request, with its
    /// extensions and its body.
    ///
    /// ```
    /// use axum::{Router, routing::get};
    /// use uncopied_http::ServeFiles;
    ///
    /// # fn app() -> std::io::Result<Router> {
    /// let dynamic = Router::new().route("/{page}", get(|| async { "rendered" }));
    /// let files = ServeFiles::new("public")?.fallback_service(dynamic);
    /// let app = Router::new().fallback_service(files);
    /// # Ok(app)
    /// # }
    /// ```
    pub fn fallback_service<S>(self, fallback: S) -> ServeFilesOr<S> {
        ServeFilesOr {
            files: self,
            fallback,
        }
    }
}

/// Serves files, and passes requests for files that do not exist to another service; see
/// [`ServeFiles::fallback_service`].
#[derive(Clone, Debug)]
pub struct ServeFilesOr<S> {
    files: ServeFiles,
    fallback: S,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for ServeFilesOr<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
{
    type Response = Response<FileOrFallbackBody<ResBody>>;
    type Error = S::Error;
    type Future = FallbackFuture<S, ReqBody>;

    /// Always returns ready. The future of a request waits for the fallback service to become
    /// ready, and does so only if the request is passed on.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let for_files = Request::from_parts(parts.clone(), ());
        FallbackFuture {
            state: FallbackState::Files {
                response: self.files.respond(for_files),
                fallback: Some((self.fallback.clone(), Request::from_parts(parts, body))),
            },
        }
    }
}

pin_project! {
    /// The future that [`ServeFilesOr`] returns for a request.
    #[must_use = "futures do nothing unless polled"]
    pub struct FallbackFuture<S, ReqBody>
    where
        S: Service<Request<ReqBody>>,
    {
        #[pin]
        state: FallbackState<S, ReqBody>,
    }
}

pin_project! {
    #[project = FallbackStateProjection]
    enum FallbackState<S, ReqBody>
    where
        S: Service<Request<ReqBody>>,
    {
        Files {
            response: ResponseFuture,
            // The fallback service and the request to pass on to it. Taken once `response` is
            // ready.
            fallback: Option<(S, Request<ReqBody>)>,
        },
        Readying {
            fallback: S,
            request: Option<Request<ReqBody>>,
        },
        Responding {
            #[pin]
            response: S::Future,
        },
    }
}

impl<S, ReqBody, ResBody> Future for FallbackFuture<S, ReqBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    type Output = Result<Response<FileOrFallbackBody<ResBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                FallbackStateProjection::Files { response, fallback } => {
                    let Ok(response) = ready!(Pin::new(response).poll(cx));
                    match fallback.take() {
                        Some((fallback, request)) if response.status() == StatusCode::NOT_FOUND => {
                            FallbackState::Readying {
                                fallback,
                                request: Some(request),
                            }
                        }
                        _ => return Poll::Ready(Ok(response.map(FileOrFallbackBody::file))),
                    }
                }
                FallbackStateProjection::Readying { fallback, request } => {
                    ready!(fallback.poll_ready(cx))?;
                    let Some(request) = request.take() else {
                        // Unreachable: the state changes as soon as the request is taken.
                        return Poll::Pending;
                    };
                    FallbackState::Responding {
                        response: fallback.call(request),
                    }
                }
                FallbackStateProjection::Responding { response } => {
                    let response = ready!(response.poll(cx))?;
                    return Poll::Ready(Ok(response.map(FileOrFallbackBody::fallback)));
                }
            };
            state.set(next);
        }
    }
}

pin_project! {
    /// The body of a response of [`ServeFilesOr`].
    #[derive(Debug)]
    pub struct FileOrFallbackBody<B> {
        #[pin]
        kind: BodyKind<B>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = BodyKindProjection]
    enum BodyKind<B> {
        File { #[pin] body: FileBody },
        Fallback { #[pin] body: B },
    }
}

impl<B> FileOrFallbackBody<B> {
    fn file(body: FileBody) -> Self {
        let kind = BodyKind::File { body };
        Self { kind }
    }

    fn fallback(body: B) -> Self {
        let kind = BodyKind::Fallback { body };
        Self { kind }
    }
}

impl<B> Body for FileOrFallbackBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.project().kind.project() {
            BodyKindProjection::File { body } => body.poll_frame(cx).map_err(Into::into),
            BodyKindProjection::Fallback { body } => body.poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            BodyKind::File { body } => body.is_end_stream(),
            BodyKind::Fallback { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            BodyKind::File { body } => body.size_hint(),
            BodyKind::Fallback { body } => body.size_hint(),
        }
    }
}
