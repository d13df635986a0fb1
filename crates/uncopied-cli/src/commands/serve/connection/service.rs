//! The service that hyper calls: serves files and counts requests.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::Service;
use pin_project_lite::pin_project;
use uncopied_http::{FileBody, FrameWatch, ResponseFuture, ServeFiles};

use super::state::ConnectionState;
use super::stats::WorkerStats;

/// Serves the files of one connection and counts its requests.
///
/// The body of a request is never read, because no response depends on it. A request with a body is
/// therefore the last one of its connection: closing the connection ensures that the unread body is
/// not mistaken for the next request.
pub(crate) struct FileService {
    files: ServeFiles,
    connection: Arc<ConnectionState>,
    stats: Arc<WorkerStats>,
    watch: FrameWatch,
}

impl FileService {
    pub(crate) fn new(
        files: ServeFiles,
        connection: Arc<ConnectionState>,
        stats: Arc<WorkerStats>,
        watch: FrameWatch,
    ) -> Self {
        Self {
            files,
            connection,
            stats,
            watch,
        }
    }
}

impl Service<Request<Incoming>> for FileService {
    type Response = Response<FileServiceBody>;
    type Error = Infallible;
    type Future = FileServiceFuture;

    fn call(&self, request: Request<Incoming>) -> FileServiceFuture {
        self.connection.note_request();
        self.stats.count_request();
        FileServiceFuture {
            is_last: !request.body().is_end_stream(),
            in_progress: Some(ResponseInProgress::begin(&self.connection)),
            response: self.files.respond(request),
            watch: self.watch.clone(),
        }
    }
}

pin_project! {
    /// The future of a response from [`ServeFiles`]. Adds `Connection: close` if the response is
    /// the last one of its connection.
    pub(crate) struct FileServiceFuture {
        #[pin]
        response: ResponseFuture,
        is_last: bool,
        in_progress: Option<ResponseInProgress>,
        watch: FrameWatch,
    }
}

/// Marks the connection as responding while this value exists, which is from the call of the
/// service until the body is dropped.
struct ResponseInProgress(Arc<ConnectionState>);

impl ResponseInProgress {
    fn begin(connection: &Arc<ConnectionState>) -> Self {
        connection.set_responding(true);
        Self(Arc::clone(connection))
    }
}

impl Drop for ResponseInProgress {
    fn drop(&mut self) {
        self.0.set_responding(false);
    }
}

impl Future for FileServiceFuture {
    type Output = Result<Response<FileServiceBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = match ready!(this.response.poll(cx)) {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let in_progress = this.in_progress.take();
        if *this.is_last {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        } else if let Some(ResponseInProgress(connection)) = &in_progress {
            connection.recorder.record_basis(response.body());
        }
        // This program owns everything between this body and the connection's HTTP/1 stream, and
        // none of it reads the frames.
        Poll::Ready(Ok(response.map(|body| FileServiceBody {
            body: body.direct(this.watch),
            in_progress,
        })))
    }
}

pin_project! {
    /// The body of a response from [`ServeFiles`]. Dropping the body marks the response as
    /// finished.
    pub(crate) struct FileServiceBody {
        #[pin]
        body: FileBody,
        in_progress: Option<ResponseInProgress>,
    }
}

impl Body for FileServiceBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
