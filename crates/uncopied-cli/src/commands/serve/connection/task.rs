//! One connection: hyper's, plus orders from outside. Nothing here allocates for a request.

use std::error::Error as StdError;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::HttpService;
use hyper_util::rt::TokioIo;
use uncopied_http::Stream;

use super::guard::Place;
use super::observer::ConnectionObserver;
use super::parking;
use super::replay::Repeats;
use super::state::Order;
use super::strict_heads::Guarded;

type Io<O> = TokioIo<Guarded<Repeats<Stream>, O>>;

/// Serves one connection to its end, and obeys orders on the way.
pub(crate) struct Serving<S: HttpService<Incoming>, O> {
    state: State<S, O>,
    http: Arc<http1::Builder>,
    observer: O,
    place: Place,
    waker: Option<Waker>,
}

/// hyper's part of a connection, while there is one.
#[expect(
    clippy::large_enum_variant,
    reason = "most connections of a server are parked, and few are moved"
)]
enum State<S: HttpService<Incoming>, O> {
    /// Waits for a request that is hyper's, without buffers. Repeats are answered meanwhile.
    Parked(Io<O>, S),
    /// hyper is at work, or was not long ago.
    Awake(Box<http1::Connection<Io<O>, S>>),
    /// In between.
    Moving,
}

impl<S: HttpService<Incoming>, O> Serving<S, O> {
    pub(crate) fn new(
        io: Io<O>,
        service: S,
        http: Arc<http1::Builder>,
        observer: O,
        place: Place,
    ) -> Self {
        let state = State::Parked(io, service);
        Self {
            state,
            http,
            observer,
            place,
            waker: None,
        }
    }
}

impl<S, B, O> Serving<S, O>
where
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
    O: ConnectionObserver,
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

impl<S, B, O> Future for Serving<S, O>
where
    S: HttpService<Incoming, ResBody = B> + Unpin,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
    O: ConnectionObserver,
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
                    this.observer.failed(&error);
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
