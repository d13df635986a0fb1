//! The task of one connection.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::BufMut as _;
use http::StatusCode;
use uncopied_http::{
    Address, CachedFile, ConnectionSocket, FileResponse, ServeFiles, StreamOptions,
};

use crate::server::access_log::AccessLog;
use crate::server::connections::{Commanded as _, ConnectionCommand};
use crate::server::warning::{WarningKind, warn_limited};

use super::buffers::RequestBuffer;
use super::close::close_gently;
use super::guard::ConnectionGuard;
use super::log::LoggedRequest;
use super::request::{MAX_HEAD_BYTES, RefusedHead, RequestHead};
use super::send::{ConnectionOption, Sending};
use super::socket::Socket;
use super::state::{ConnectionState, Phase};
use super::stats::WorkerStats;

/// What all connections of a worker have in common.
pub(crate) struct ConnectionSettings {
    pub(crate) files: ServeFiles,
    pub(crate) stats: Arc<WorkerStats>,
    pub(crate) log: Option<Arc<AccessLog>>,
    /// How files are sent.
    pub(crate) options: StreamOptions,
}

/// A connection that has been accepted.
pub(crate) struct Connection {
    socket: Socket,
    client: Address,
    state: Arc<ConnectionState>,
    settings: Arc<ConnectionSettings>,
}

/// What to do with the connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterResponse {
    /// Wait for the next request.
    KeepOpen,
    /// Close once the peer has received everything.
    CloseGently,
    /// Close at once: the connection has failed, or the response is incomplete.
    Close,
}

impl Connection {
    pub(crate) fn new(
        socket: ConnectionSocket,
        client: Address,
        guard: &ConnectionGuard,
        settings: &Arc<ConnectionSettings>,
    ) -> Self {
        let state = Arc::clone(&guard.connection);
        Self {
            socket: Socket::new(socket, Arc::clone(&state)),
            client,
            state,
            settings: Arc::clone(settings),
        }
    }

    /// Serves the connection until it ends, and carries out the commands that it receives.
    pub(crate) async fn run(self, guard: ConnectionGuard) {
        let state = Arc::clone(&guard.connection);
        let mut registered: Option<Waker> = None;
        let mut serving = pin!(self.serve());
        poll_fn(|cx| {
            // The waker rarely changes, so this usually costs only a comparison.
            if !registered
                .as_ref()
                .is_some_and(|waker| waker.will_wake(cx.waker()))
            {
                state.commands().register_waker(cx.waker());
                registered = Some(cx.waker().clone());
            }
            match state.command() {
                ConnectionCommand::Abort => Poll::Ready(()),
                _ => serving.as_mut().poll(cx),
            }
        })
        .await;
    }

    async fn serve(mut self) {
        let mut partial_head = Vec::new();
        while let Some(mut buffer) = self.next_bytes(&partial_head).await {
            let after = loop {
                match buffer.parse() {
                    Ok(true) => {}
                    Ok(false) => break AfterResponse::KeepOpen,
                    Err(refused) => {
                        self.state.enter(Phase::Responding);
                        break self.respond(&mut buffer, Some(refused)).await;
                    }
                }
                self.state.note_request();
                self.settings.stats.count_request();
                let after = self.respond(&mut buffer, None).await;
                buffer.remove_head();
                if after != AfterResponse::KeepOpen || buffer.bytes.is_empty() {
                    break after;
                }
                // A client that sends many requests at once must not keep others waiting.
                tokio::task::consume_budget().await;
            };
            partial_head.clear();
            partial_head.extend_from_slice(&buffer.bytes);
            buffer.give_back();
            match after {
                AfterResponse::KeepOpen => {}
                AfterResponse::CloseGently => {
                    self.state.enter(Phase::Closing);
                    return Box::pin(close_gently(&mut self.socket)).await;
                }
                AfterResponse::Close => return,
            }
            let is_idle = partial_head.is_empty();
            if is_idle {
                partial_head = Vec::new();
                self.state.enter(Phase::Idle);
            } else {
                self.state.enter_once(Phase::Head);
            }
        }
    }

    /// Waits for bytes, and reads them into a buffer behind those of `partial_head`. Returns `None`
    /// if the connection has ended, or is idle and told to drain.
    async fn next_bytes(&mut self, partial_head: &[u8]) -> Option<Box<RequestBuffer>> {
        poll_fn(|cx| self.poll_next_bytes(cx, partial_head)).await
    }

    fn poll_next_bytes(
        &mut self,
        cx: &mut Context<'_>,
        partial_head: &[u8],
    ) -> Poll<Option<Box<RequestBuffer>>> {
        // If no request has arrived yet, the first one may be on its way.
        if self.is_draining() && partial_head.is_empty() && self.state.has_received_request() {
            return Poll::Ready(None);
        }
        if ready!(self.socket.poll_read_ready(cx)).is_err() {
            return Poll::Ready(None);
        }
        let mut buffer = RequestBuffer::take(partial_head);
        let room = MAX_HEAD_BYTES - partial_head.len();
        let read = self
            .socket
            .poll_read(cx, &mut (&mut buffer.bytes).limit(room));
        match read {
            Poll::Ready(Ok(1..)) => Poll::Ready(Some(buffer)),
            Poll::Ready(_) => {
                buffer.give_back();
                Poll::Ready(None)
            }
            Poll::Pending => {
                buffer.give_back();
                Poll::Pending
            }
        }
    }

    fn is_draining(&self) -> bool {
        self.state.command() >= ConnectionCommand::Drain
    }

    /// Responds to the request at the start of the buffer, or to a head that is refused.
    async fn respond(
        &mut self,
        buffer: &mut RequestBuffer,
        refused: Option<RefusedHead>,
    ) -> AfterResponse {
        let Self {
            socket,
            client,
            state,
            settings,
        } = self;
        let log = settings.log.as_ref();
        let mut logged = LoggedRequest::begin(log, client, state, buffer);
        let response = match refused {
            None => response_to(&settings.files, logged.buffer).await,
            Some(refused) => settings.files.error_response(refused.status()),
        };
        // After a head that is refused, it is unknown where the next request begins.
        let head = logged.buffer.request().map(|request| request.head);
        let is_last =
            head.is_none_or(RequestHead::is_last) || state.command() >= ConnectionCommand::Drain;
        let option = match (is_last, head.is_some_and(RequestHead::is_http_1_0)) {
            (true, _) => ConnectionOption::Close,
            (false, true) => ConnectionOption::KeepAlive,
            (false, false) => ConnectionOption::None,
        };
        send(settings, socket, response, option, &mut logged).await
    }
}

/// Returns the response to the request at the start of the buffer.
async fn response_to(files: &ServeFiles, buffer: &RequestBuffer) -> FileResponse {
    let Some(request) = buffer.request() else {
        return files.error_response(StatusCode::BAD_REQUEST);
    };
    let cached = files.cached(request.target());
    if cached.as_ref().is_some_and(CachedFile::must_yield) {
        yield_once().await;
    }
    match files.try_respond(request.target(), &request, cached) {
        Ok(response) => response,
        Err(_) => match request.to_http() {
            // The future is in a box, because it is large and rarely needed: it would otherwise
            // take up memory in every connection.
            Some(request) => match Box::pin(files.respond(request)).await {
                Ok(response) => response.into(),
                Err(never) => match never {},
            },
            None => files.error_response(StatusCode::BAD_REQUEST),
        },
    }
}

async fn send(
    settings: &ConnectionSettings,
    socket: &mut Socket,
    response: FileResponse,
    option: ConnectionOption,
    logged: &mut LoggedRequest<'_>,
) -> AfterResponse {
    logged.status = response.status();
    // Status 505 is a fault of the client, and the control thread tells of a missing root.
    let is_failure = response.status().is_server_error()
        && response.status() != StatusCode::HTTP_VERSION_NOT_SUPPORTED;
    if is_failure && !settings.files.is_root_missing() {
        warn_of_status(response.status(), logged);
    }
    let sending = Sending {
        options: &settings.options,
        totals: &settings.stats.totals,
    };
    let sent = match sending.start(socket, response, option, &mut logged.sent) {
        Ok(Some(unsent)) => {
            if unsent.is_long() {
                logged.buffer.shrink();
            }
            // In a box for the same reason as in `response_to`: few responses need it.
            Box::pin(sending.finish(socket, unsent, &mut logged.sent)).await
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    match sent {
        Ok(()) => {
            logged.is_complete = true;
            match option {
                ConnectionOption::Close => AfterResponse::CloseGently,
                ConnectionOption::None | ConnectionOption::KeepAlive => AfterResponse::KeepOpen,
            }
        }
        Err(error) => {
            if !is_fault_of_peer(&error) {
                let body_bytes = logged.sent.body_bytes;
                let target = target_of(logged);
                warn_limited(
                    WarningKind::BodyCut,
                    &format_args!("{target}: the body was cut after {body_bytes} bytes: {error}"),
                );
            }
            logged.error = Some(error.to_string());
            AfterResponse::Close
        }
    }
}

/// Warns of a response that tells of a failure of the server.
fn warn_of_status(status: StatusCode, logged: &LoggedRequest<'_>) {
    let target = target_of(logged);
    let remedy = match status {
        StatusCode::SERVICE_UNAVAILABLE => {
            "; the process may lack descriptors (ulimit -n) or memory, or the file was being written"
        }
        StatusCode::INTERNAL_SERVER_ERROR => {
            "; the file system may have failed (see the kernel's log)"
        }
        _ => "",
    };
    warn_limited(
        WarningKind::ServerError,
        &format_args!("{target}: responded with {status}{remedy}"),
    );
}

/// Returns the target of the request, for a message.
fn target_of(logged: &LoggedRequest<'_>) -> String {
    let request = logged.buffer.request();
    let target = request.map_or(&b"-"[..], |request| request.raw_target());
    String::from_utf8_lossy(target).into_owned()
}

/// Whether an error of a response comes from the peer or the network, and not from the file.
fn is_fault_of_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
    )
}

/// Lets the other tasks of the thread that are ready run once. Unlike tokio's `yield_now`, this
/// does not wait for the event loop to look for new events first.
async fn yield_once() {
    let mut has_yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
