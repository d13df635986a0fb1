//! One connection: hyper's, plus orders from outside. Nothing here allocates for a request.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{HttpService, Service};
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;
use tokio::sync::Semaphore;
use uncopied_http::{FileBody, ResponseFuture, ServeFiles, Stream};

use super::heads::Guarded;
use super::parking;
use super::repeats::Repeats;
use super::table::{Order, Seat};
use super::thread::Shared;

/// The place of a connection: entered in the table, one permit of `--max-connections`. Both are
/// given back when it is dropped, however the connection ends.
pub(crate) struct Place {
    pub(crate) seat: Arc<Seat>,
    thread: Arc<Shared>,
    permits: Arc<Semaphore>,
    key: usize,
}

impl Place {
    pub(crate) fn take(seat: Seat, thread: &Arc<Shared>, permits: &Arc<Semaphore>) -> Self {
        let seat = Arc::new(seat);
        let key = thread.table.insert(Arc::clone(&seat));
        Self {
            seat,
            thread: Arc::clone(thread),
            permits: Arc::clone(permits),
            key,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.thread.table.remove(self.key);
        self.permits.add_permits(1);
    }
}

/// Answers requests from files and counts them.
///
/// A request with a body is the last of its connection: no file needs a body, so none is read, and what
/// is not read cannot be taken for the next request.
pub(crate) struct Answers {
    files: ServeFiles,
    seat: Arc<Seat>,
    thread: Arc<Shared>,
}

impl Answers {
    pub(crate) fn new(files: ServeFiles, seat: Arc<Seat>, thread: Arc<Shared>) -> Self {
        Self {
            files,
            seat,
            thread,
        }
    }
}

pin_project! {
    /// The library's own future, and whether its answer is the last one.
    pub(crate) struct AnswerFuture {
        #[pin]
        answer: ResponseFuture,
        is_last: bool,
        under_way: Option<UnderWay>,
    }
}

/// Notes on the seat that an answer is under way: from the call to the end of its body.
struct UnderWay(Arc<Seat>);

impl UnderWay {
    fn begin(seat: &Arc<Seat>) -> Self {
        seat.set_answering(true);
        Self(Arc::clone(seat))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.set_answering(false);
    }
}

impl Future for AnswerFuture {
    type Output = Result<Response<AnswerBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = match ready!(this.answer.poll(cx)) {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let under_way = this.under_way.take();
        if *this.is_last {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        } else if let Some(UnderWay(seat)) = &under_way {
            seat.tape.note(response.body());
        }
        Poll::Ready(Ok(response.map(|body| AnswerBody { body, under_way })))
    }
}

pin_project! {
    /// The library's own body; its end is noted.
    pub(crate) struct AnswerBody {
        #[pin]
        body: FileBody,
        under_way: Option<UnderWay>,
    }
}

impl Body for AnswerBody {
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

impl Service<Request<Incoming>> for Answers {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = AnswerFuture;

    fn call(&self, request: Request<Incoming>) -> AnswerFuture {
        self.seat.requested();
        self.thread.count_request();
        AnswerFuture {
            is_last: !request.body().is_end_stream(),
            under_way: Some(UnderWay::begin(&self.seat)),
            answer: self.files.respond(request),
        }
    }
}

/// What to do about a connection that ends with an error. Most are peers that went away.
pub(crate) trait OnError {
    fn ended(&self, error: &hyper::Error);
}

impl OnError for () {
    fn ended(&self, _error: &hyper::Error) {}
}

type Io = TokioIo<Guarded<Repeats<Stream>>>;

/// Serves one connection to its end, and obeys orders on the way.
pub(crate) struct Serving<S: HttpService<Incoming>, E> {
    state: State<S>,
    http: Arc<http1::Builder>,
    on_error: E,
    place: Place,
    waker: Option<Waker>,
}

/// hyper's part of a connection, while there is one.
#[expect(
    clippy::large_enum_variant,
    reason = "most connections of a server are parked, and few are moved"
)]
enum State<S: HttpService<Incoming>> {
    /// Waits for a request that is hyper's, without buffers. Repeats are answered meanwhile.
    Parked(Io, S),
    /// hyper is at work, or was not long ago.
    Awake(Box<http1::Connection<Io, S>>),
    /// In between.
    Moving,
}

impl<S: HttpService<Incoming>, E> Serving<S, E> {
    pub(crate) fn new(
        io: Io,
        service: S,
        http: Arc<http1::Builder>,
        on_error: E,
        place: Place,
    ) -> Self {
        let state = State::Parked(io, service);
        Self {
            state,
            http,
            on_error,
            place,
            waker: None,
        }
    }
}

impl<S, B, E> Serving<S, E>
where
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
    E: OnError,
{
    /// Ready when the connection needs hyper, or is to end.
    fn poll_parked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let seat = &self.place.seat;
        let State::Parked(io, _) = &mut self.state else {
            return Poll::Ready(());
        };
        match seat.order() {
            Order::Cut => return Poll::Ready(()),
            // What has not begun yet may be on its way.
            Order::Finish if seat.has_requested() => return Poll::Ready(()),
            Order::None | Order::Park | Order::Finish => {}
        }
        let polled = io.inner_mut().get_mut().poll_without_hyper(cx);
        match seat.order() {
            // What was waited for is answered, or on its way.
            Order::Finish if seat.has_requested() => Poll::Ready(()),
            _ => polled,
        }
    }

    fn wake(&mut self) {
        self.state = match mem::replace(&mut self.state, State::Moving) {
            State::Parked(io, service) => {
                State::Awake(Box::new(self.http.serve_connection(io, service)))
            }
            other => other,
        };
    }

    /// Gives hyper's part up. Only for a connection between two requests: nothing is then to be written, and
    /// what has been read is put back.
    fn park(&mut self) {
        self.state = match mem::replace(&mut self.state, State::Moving) {
            State::Awake(connection) => {
                let mut parts = connection.into_parts();
                // Where hyper lets other tasks go first, it may hold requests that came in a heap.
                if !parts.read_buf.is_empty() {
                    let repeats = parts.io.inner_mut().get_mut();
                    repeats.put_back(&parts.read_buf);
                }
                State::Parked(parts.io, parts.service)
            }
            other => other,
        };
    }
}

impl<S, B, E> Future for Serving<S, E>
where
    S: HttpService<Incoming, ResBody = B> + Unpin,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
    E: OnError + Unpin,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        // A task keeps its waker, so this is one comparison for each poll but the first.
        if !this
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            this.place.seat.wake_for_orders(cx.waker());
            this.waker = Some(cx.waker().clone());
        }
        loop {
            let is_new = matches!(this.state, State::Parked(..));
            if is_new {
                ready!(this.poll_parked(cx));
                this.wake();
            }
            let seat = &this.place.seat;
            let State::Awake(connection) = &mut this.state else {
                return Poll::Ready(());
            };
            let mut connection = Pin::new(&mut **connection);
            let order = seat.order();
            if order == Order::Cut {
                return Poll::Ready(());
            }
            // Told before it has read anything, hyper would not read what it was woken for. Told twice, it does
            // nothing the second time.
            let finishes = order == Order::Finish;
            if finishes && !is_new {
                connection.as_mut().graceful_shutdown();
            }
            let mut polled = connection.as_mut().poll(cx);
            if finishes && is_new && polled.is_pending() {
                connection.as_mut().graceful_shutdown();
                polled = connection.poll(cx);
            }
            if let Poll::Ready(end) = polled {
                if let Err(error) = end {
                    this.on_error.ended(&error);
                }
                return Poll::Ready(());
            }
            let seat = &this.place.seat;
            let is_idle = seat.is_idle();
            match seat.order() {
                Order::Park => {
                    seat.clear_park();
                    if !is_idle {
                        return Poll::Pending;
                    }
                    this.park();
                }
                _ => {
                    if is_idle && seat.tape.repeats_only() {
                        this.park();
                        continue;
                    }
                    if is_idle {
                        parking::is_idle(seat);
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}
