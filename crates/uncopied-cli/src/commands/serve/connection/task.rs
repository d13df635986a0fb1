//! The task of one connection: polls hyper, carries out commands from the control thread, and parks
//! the connection. The task allocates nothing per request.

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

use super::guard::ConnectionGuard;
use super::observer::ConnectionObserver;
use super::parking;
use super::replay::ReplayStream;
use super::state::ConnectionCommand;
use super::strict_heads::StrictHeads;

type Io<O> = TokioIo<StrictHeads<ReplayStream<Stream>, O>>;

/// Serves one connection until it ends, and carries out the commands that the connection receives.
pub(crate) struct ConnectionTask<S: HttpService<Incoming>, O> {
    http: HttpState<S, O>,
    builder: Arc<http1::Builder>,
    observer: O,
    guard: ConnectionGuard,
    waker: Option<Waker>,
}

/// The HTTP side of a connection: hyper's connection object, or just the stream and the service
/// while the connection is parked.
#[expect(
    clippy::large_enum_variant,
    reason = "most connections are parked, so boxing `Parked` would save little memory"
)]
enum HttpState<S: HttpService<Incoming>, O> {
    /// hyper's connection object has been dropped. The stream replays responses to repeats, and
    /// waits for a request that needs hyper.
    Parked(Io<O>, S),
    /// hyper serves the connection, or did so recently.
    Unparked(Box<http1::Connection<Io<O>, S>>),
    /// A placeholder while `park` or `unpark` moves the value from one of the other variants to the
    /// other. Both methods replace the placeholder before they return.
    Transition,
}

impl<S: HttpService<Incoming>, O> ConnectionTask<S, O> {
    pub(crate) fn new(
        io: Io<O>,
        service: S,
        builder: Arc<http1::Builder>,
        observer: O,
        guard: ConnectionGuard,
    ) -> Self {
        Self {
            http: HttpState::Parked(io, service),
            builder,
            observer,
            guard,
            waker: None,
        }
    }

    /// Registers the task's waker, so that commands wake the task. The waker rarely changes, so
    /// every poll after the first usually costs only a comparison.
    fn register_waker(&mut self, waker: &Waker) {
        let is_registered = self
            .waker
            .as_ref()
            .is_some_and(|registered| registered.will_wake(waker));
        if !is_registered {
            self.guard.connection.register_waker(waker);
            self.waker = Some(waker.clone());
        }
    }
}

impl<S, B, O> ConnectionTask<S, O>
where
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
    O: ConnectionObserver,
{
    /// Polls a parked connection. Ready once the connection needs hyper or must close.
    fn poll_parked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let connection = &self.guard.connection;
        let HttpState::Parked(io, _) = &mut self.http else {
            return Poll::Ready(());
        };
        match connection.command() {
            ConnectionCommand::Abort => return Poll::Ready(()),
            // Close only if a request has arrived before. Otherwise, the first request may be on
            // its way, so the connection stays open.
            ConnectionCommand::Drain if connection.has_received_request() => {
                return Poll::Ready(());
            }
            ConnectionCommand::None | ConnectionCommand::Park | ConnectionCommand::Drain => {}
        }
        let polled = io.inner_mut().get_mut().poll_without_hyper(cx);
        match connection.command() {
            // The first request arrived during this poll, and its response has been sent or is
            // being sent, so the connection may drain now. `Ready` passes the connection to hyper,
            // which closes it once the response has been sent.
            ConnectionCommand::Drain if connection.has_received_request() => Poll::Ready(()),
            _ => polled,
        }
    }

    fn unpark(&mut self) {
        self.http = match mem::replace(&mut self.http, HttpState::Transition) {
            HttpState::Parked(io, service) => {
                HttpState::Unparked(Box::new(self.builder.serve_connection(io, service)))
            }
            other => other,
        };
    }

    /// Drops hyper's connection object. Must be called between two requests, when hyper has nothing
    /// to write. Bytes that hyper has read but not used are put back into the stream.
    fn park(&mut self) {
        self.http = match mem::replace(&mut self.http, HttpState::Transition) {
            HttpState::Unparked(http) => {
                let mut parts = http.into_parts();
                // Put back pipelined requests that hyper has read but not yet handled. This happens
                // if hyper yields to other tasks between two of them.
                if !parts.read_buf.is_empty() {
                    let replay_stream = parts.io.inner_mut().get_mut();
                    replay_stream.put_back(&parts.read_buf);
                }
                HttpState::Parked(parts.io, parts.service)
            }
            other => other,
        };
    }

    /// Parks the connection if it is idle and either was told to park or has recently received only
    /// repeats. If it is idle but not parked, adds it to the idle list. Returns whether the
    /// connection was parked.
    fn park_or_note_idle(&mut self) -> bool {
        let connection = &self.guard.connection;
        let is_idle = connection.is_idle();
        let is_told_to_park = connection.command() == ConnectionCommand::Park;
        if is_told_to_park {
            connection.clear_park();
        }
        if !is_idle {
            return false;
        }
        if is_told_to_park || connection.recorder.receives_only_repeats() {
            self.park();
            return true;
        }
        parking::note_idle(connection);
        false
    }
}

impl<S, B, O> ConnectionTask<S, O>
where
    S: HttpService<Incoming, ResBody = B> + Unpin,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
    O: ConnectionObserver,
{
    /// Polls hyper's connection object. Ready once the connection has ended.
    fn poll_hyper(&mut self, cx: &mut Context<'_>, was_parked: bool) -> Poll<()> {
        let HttpState::Unparked(http) = &mut self.http else {
            return Poll::Ready(());
        };
        let mut http = Pin::new(&mut **http);
        let command = self.guard.connection.command();
        if command == ConnectionCommand::Abort {
            return Poll::Ready(());
        }
        // After unparking, hyper must be polled once before it is told to shut down. Otherwise, it
        // would not read the bytes that unparked the connection. Calling `graceful_shutdown` again
        // has no further effect.
        let drains = command == ConnectionCommand::Drain;
        if drains && !was_parked {
            http.as_mut().graceful_shutdown();
        }
        let mut polled = http.as_mut().poll(cx);
        if drains && was_parked && polled.is_pending() {
            http.as_mut().graceful_shutdown();
            polled = http.poll(cx);
        }
        polled.map(|outcome| {
            if let Err(error) = outcome {
                self.observer.failed(&error);
            }
        })
    }
}

impl<S, B, O> Future for ConnectionTask<S, O>
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
        this.register_waker(cx.waker());
        loop {
            let was_parked = matches!(this.http, HttpState::Parked(..));
            if was_parked {
                ready!(this.poll_parked(cx));
                this.unpark();
            }
            if this.poll_hyper(cx, was_parked).is_ready() {
                return Poll::Ready(());
            }
            if !this.park_or_note_idle() {
                return Poll::Pending;
            }
        }
    }
}
