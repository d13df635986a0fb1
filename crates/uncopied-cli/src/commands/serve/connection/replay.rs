//! Replays recorded responses, without hyper, to requests that are byte-for-byte identical to
//! recent ones.
//!
//! For a small response, a third of the total time is spent on parsing the request and writing the
//! head, in hyper and in this crate. Clients of a busy server often send identical requests. So
//! [`ReplayStream`], which is below hyper, records the head of each suitable response together with
//! the bytes of its request, and sends the head again when the same bytes arrive:
//!
//! ```text
//!   bytes of a request --> known? -- no --> hyper --> FileService --> head, body --> stream
//!                          | yes                      | basis         | head
//!                          v                          v               v
//!                   is its basis valid?          recorded: request, head, basis
//!                          | yes
//!                          v
//!                   recorded head, body from the file --> stream
//! ```
//!
//! Requests are compared byte by byte and not parsed: equal bytes are equal requests. A replayed
//! response is never stale: for each request, the kernel is asked whether the file is still the one
//! that was recorded (see [`Basis`]). A head is replayed for at most [`MAX_REPLAY_AGE`], so that
//! its `Date` stays correct. hyper handles all other cases:
//!
//! - Responses that depend on more than one file (precompressed variants, a fallback page) or on a
//!   request body.
//! - Responses that are not a whole file (ranges, failed preconditions).
//! - Every request if there is an access log, because the log reports requests as hyper has parsed
//!   them, and a replayed request is never parsed.
//!
//! Responses are replayed only while the connection is between two requests. In that state, hyper
//! holds no unprocessed bytes, so the bytes that arrive are the beginning of a request.

use std::cell::RefCell;
use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::BuildHasher;
use std::io::{self, IoSlice};
use std::mem::{self, MaybeUninit};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use uncopied::arena::locate;
use uncopied_http::{Basis, Check, FileBody, FrameWatch};

use super::state::ConnectionState;
use super::stats::WorkerStats;

/// The maximum age of a recorded head that is replayed. The limit keeps the `Date` in the head
/// current. hyper itself reuses a `Date` for up to a second.
const MAX_REPLAY_AGE: Duration = Duration::from_millis(500);

/// The number of slots in each thread's cache. A full cache, with requests and inline bodies, takes
/// less than 5 MiB.
const CACHE_SLOTS: usize = 256;

/// The longest request that is considered for replay.
const MAX_REQUEST_BYTES: usize = 2048;

/// The longest body that is recorded together with its head.
const MAX_INLINE_BODY_BYTES: usize = 16 << 10;

const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// A stream that itself responds to repeated requests, and passes all other requests to hyper.
pub(crate) struct ReplayStream<S> {
    stream: S,
    connection: Arc<ConnectionState>,
    /// Counts replayed responses. `None` turns replay off, so that hyper handles all requests.
    stats: Option<Arc<WorkerStats>>,
    watch: FrameWatch,
    state: ReplayState,
}

enum ReplayState {
    /// Bytes pass through unchanged.
    PassThrough,
    /// hyper has read this request. The head of the response will be recorded when hyper writes
    /// that head.
    Recording(Box<[u8]>),
    /// A request with a recorded response has arrived, and the [`Check`] whether that response is
    /// still valid is in progress.
    Validating(Arc<RecordedResponse>, Check),
    /// A recorded response is being sent.
    Sending(ReplayInProgress),
    /// hyper must read these bytes before any bytes from the socket.
    Forwarding(BufferedRequest),
    /// A response was cut short, or the connection failed. Nothing more may be sent, because the
    /// peer would take it for the rest of that response.
    Failed(io::ErrorKind),
}

/// Bytes for hyper that have already been read from the socket.
struct BufferedRequest {
    bytes: Box<[u8]>,
    /// The number of bytes that hyper has already taken from `bytes`.
    consumed: usize,
    /// Whether the bytes are a request whose response is to be recorded.
    is_recordable: bool,
}

impl BufferedRequest {
    fn new(bytes: &[u8], is_recordable: bool) -> Self {
        Self {
            bytes: bytes.into(),
            consumed: 0,
            is_recordable,
        }
    }
}

impl<S> ReplayStream<S> {
    pub(crate) fn new(
        stream: S,
        connection: Arc<ConnectionState>,
        stats: Option<Arc<WorkerStats>>,
        watch: FrameWatch,
    ) -> Self {
        Self {
            stream,
            connection,
            stats,
            watch,
            state: ReplayState::PassThrough,
        }
    }

    /// Starts to record the response to this request. The recording is discarded if the response
    /// turns out not to be replayable.
    fn start_recording(&mut self, request: Box<[u8]>) {
        self.connection.recorder.start_recording();
        self.state = ReplayState::Recording(request);
    }

    /// Takes back bytes that hyper has read but not used, so that hyper's connection object can be
    /// dropped. Must not be called while a response is in progress, because this replaces the state
    /// that tracks the response.
    pub(crate) fn put_back(&mut self, bytes: &[u8]) {
        self.connection.recorder.stop_recording();
        if !matches!(self.state, ReplayState::Failed(_)) {
            self.state = ReplayState::Forwarding(BufferedRequest::new(bytes, false));
        }
    }

    /// Finishes the recording, if one is in progress. `slices` are the arguments of hyper's first
    /// write after it has read the request. The response is recorded only if the first slice is its
    /// head and the other slices are its whole body.
    fn finish_recording(&mut self, slices: &[IoSlice<'_>]) {
        let ReplayState::Recording(request) = &mut self.state else {
            return;
        };
        let request = mem::take(request);
        self.state = ReplayState::PassThrough;
        let Some((basis, length)) = self.connection.recorder.stop_recording() else {
            return;
        };
        let [head, body @ ..] = slices else {
            return;
        };
        let body_bytes: usize = body.iter().map(|slice| slice.len()).sum();
        if body_bytes as u64 != length || !is_replayable(head) {
            return;
        }
        // Record the body only if it is short and in memory. `locate` returns `None` for a slice in
        // ordinary memory, and `Some` for a slice that refers to a mapped file. Replays send the
        // body from the file if it is not recorded.
        let is_inline =
            body_bytes <= MAX_INLINE_BODY_BYTES && body.iter().all(|slice| locate(slice).is_none());
        let parts = if is_inline { slices } else { &slices[..1] };
        ReplayCache::insert(RecordedResponse {
            request,
            bytes: parts.iter().flat_map(|part| part.iter().copied()).collect(),
            has_inline_body: is_inline,
            basis,
            recorded_at: self.connection.activity.entered(),
        });
    }
}

impl<S: AsyncWrite + Unpin> ReplayStream<S> {
    /// Continues the replay that is in progress, if any. Ready once no replay is in progress.
    fn poll_replay(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                ReplayState::PassThrough
                | ReplayState::Recording(_)
                | ReplayState::Forwarding(_) => {
                    return Poll::Ready(Ok(()));
                }
                ReplayState::Validating(response, check) => {
                    let body = ready!(Pin::new(check).poll(cx));
                    let response = Arc::clone(response);
                    self.state = match body {
                        // The recorded response is no longer valid, so the request goes to hyper.
                        None => {
                            ReplayState::Forwarding(BufferedRequest::new(&response.request, true))
                        }
                        Some(body) => {
                            self.connection.note_request();
                            self.connection.recorder.note_repeat();
                            if let Some(stats) = &self.stats {
                                stats.count_request();
                            }
                            // This program owns everything between this body and the
                            // connection's HTTP/1 stream, and none of it reads the frames.
                            let body = body.direct(&self.watch);
                            ReplayState::Sending(ReplayInProgress::new(response, body))
                        }
                    };
                }
                ReplayState::Sending(replay) => {
                    let sent = ready!(replay.poll_send(cx, &mut self.stream));
                    self.state = match &sent {
                        Ok(()) => ReplayState::PassThrough,
                        Err(error) => ReplayState::Failed(error.kind()),
                    };
                    return Poll::Ready(sent);
                }
                ReplayState::Failed(kind) => return Poll::Ready(Err((*kind).into())),
            }
        }
    }
}

/// A recorded response that is being sent.
struct ReplayInProgress {
    response: Arc<RecordedResponse>,
    /// The number of recorded bytes that have been sent.
    sent: usize,
    /// Bytes that the body has yielded but that have not been sent.
    frame: Bytes,
    /// The rest of the body, which is sent from the file. `None` if the body is recorded inline or
    /// has been sent.
    body: Option<FileBody>,
}

impl ReplayInProgress {
    fn new(response: Arc<RecordedResponse>, body: FileBody) -> Self {
        Self {
            body: (!response.has_inline_body).then_some(body),
            response,
            sent: 0,
            frame: Bytes::new(),
        }
    }

    fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.frame.is_empty()
                && let Some(body) = &mut self.body
            {
                match ready!(Pin::new(body).poll_frame(cx)) {
                    Some(frame) => self.frame = frame?.into_data().unwrap_or_default(),
                    None => self.body = None,
                }
                continue;
            }
            let recorded = &self.response.bytes[self.sent..];
            if recorded.is_empty() && self.frame.is_empty() {
                return Pin::new(stream).poll_flush(cx);
            }
            let slices = &[IoSlice::new(recorded), IoSlice::new(&self.frame)];
            let slices = match self.frame.is_empty() {
                true => &slices[..1],
                false => slices,
            };
            let written = ready!(Pin::new(&mut *stream).poll_write_vectored(cx, slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let written_of_recorded = written.min(recorded.len());
            self.sent += written_of_recorded;
            self.frame.advance(written - written_of_recorded);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> ReplayStream<S> {
    /// Replays responses while the connection is parked. Ready once hyper is needed.
    pub(crate) fn poll_without_hyper(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            // hyper is also needed after an error: hyper's next read returns the error, and hyper
            // reports it.
            if ready!(self.poll_replay(cx)).is_err()
                || matches!(self.state, ReplayState::Forwarding(_))
            {
                return Poll::Ready(());
            }
            let mut bytes = [const { MaybeUninit::uninit() }; MAX_REQUEST_BYTES];
            let mut buf = ReadBuf::uninit(&mut bytes);
            let is_recordable = match ready!(self.poll_request(cx, &mut buf)) {
                Ok(Route::Replay) => continue,
                Ok(Route::Record) => true,
                Ok(Route::PassThrough) => false,
                Err(error) => {
                    self.state = ReplayState::Failed(error.kind());
                    return Poll::Ready(());
                }
            };
            if !buf.filled().is_empty() {
                let request = BufferedRequest::new(buf.filled(), is_recordable);
                self.state = ReplayState::Forwarding(request);
            }
            return Poll::Ready(());
        }
    }

    /// Reads bytes that may be a request. If they are a request whose response is recorded, removes
    /// them from `buf` again, and starts to check whether the recorded response is still valid.
    fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Route>> {
        let may_replay = self.stats.is_some() && self.connection.is_idle();
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let lookup = match may_replay {
            true => ReplayCache::find(&buf.filled()[before..], self.connection.activity.entered()),
            false => CacheLookup::Miss,
        };
        if let CacheLookup::Hit(response) = lookup {
            buf.set_filled(before);
            let check = response.basis.check();
            self.state = ReplayState::Validating(response, check);
            return Poll::Ready(Ok(Route::Replay));
        }
        self.connection.recorder.note_other_request();
        Poll::Ready(Ok(match lookup {
            CacheLookup::Seen => Route::Record,
            _ => Route::PassThrough,
        }))
    }
}

/// The destination of the bytes that were read.
enum Route {
    /// The bytes are a request whose response may be replayed here.
    Replay,
    /// The bytes go to hyper, and hyper's response is recorded.
    Record,
    /// The bytes go to hyper, and nothing is recorded.
    PassThrough,
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for ReplayStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            ready!(this.poll_replay(cx))?;
            if let ReplayState::Forwarding(request) = &mut this.state {
                let rest = &request.bytes[request.consumed..];
                let count = rest.len().min(buf.remaining());
                buf.put_slice(&rest[..count]);
                request.consumed += count;
                if count == rest.len() {
                    let bytes = mem::take(&mut request.bytes);
                    let is_recordable = request.is_recordable;
                    this.state = ReplayState::PassThrough;
                    if is_recordable {
                        this.start_recording(bytes);
                    }
                }
                return Poll::Ready(Ok(()));
            }
            let before = buf.filled().len();
            match ready!(this.poll_request(cx, buf))? {
                Route::Replay => {}
                Route::Record => {
                    this.start_recording(buf.filled()[before..].into());
                    return Poll::Ready(Ok(()));
                }
                Route::PassThrough => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReplayStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_replay(cx))?;
        this.finish_recording(slices);
        Pin::new(&mut this.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Do nothing during a replay, because the replay flushes the stream when it ends.
        match this.state {
            ReplayState::Validating(..) | ReplayState::Sending(_) => Poll::Ready(Ok(())),
            _ => Pin::new(&mut this.stream).poll_flush(cx),
        }
    }

    /// Finishes a replay that is in progress, and then shuts the stream down.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_replay(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

/// A recorded request and its response.
struct RecordedResponse {
    request: Box<[u8]>,
    /// The head of the response, followed by the body if `has_inline_body` is true.
    bytes: Box<[u8]>,
    has_inline_body: bool,
    basis: Basis,
    /// The time of the recording, since the epoch that [`uncopied_http::Activity::entered`] uses in
    /// this process.
    recorded_at: Duration,
}

/// A thread's cache of requests that it has seen, and of recorded responses. The hash of a request
/// selects the only slot that can hold the request.
struct ReplayCache {
    hasher: RandomState,
    slots: Box<[CacheSlot]>,
}

#[derive(Clone, Default)]
enum CacheSlot {
    #[default]
    Empty,
    /// The hash of a request that has arrived once.
    Seen(u64),
    Recorded(Arc<RecordedResponse>),
}

enum CacheLookup {
    /// A recent response to the request is recorded.
    Hit(Arc<RecordedResponse>),
    /// The request has arrived before, but no recent response is recorded. The next response should
    /// be recorded.
    Seen,
    /// The bytes are not a request that has been seen before.
    Miss,
}

thread_local! {
    static REPLAY_CACHE: RefCell<ReplayCache> = RefCell::new(ReplayCache {
        hasher: RandomState::new(),
        slots: vec![CacheSlot::Empty; CACHE_SLOTS].into(),
    });
}

impl ReplayCache {
    /// Looks up bytes that arrived at time `now`. If they are exactly one GET request that has not
    /// been seen yet, marks the request as seen, unless its slot holds a recent response to another
    /// request.
    fn find(bytes: &[u8], now: Duration) -> CacheLookup {
        if bytes.len() > MAX_REQUEST_BYTES || !bytes.ends_with(END_OF_HEAD) {
            return CacheLookup::Miss;
        }
        REPLAY_CACHE.with_borrow_mut(|cache| {
            let hash = cache.hasher.hash_one(bytes);
            let slot = cache.slot(hash);
            match slot {
                CacheSlot::Recorded(response) if *response.request == *bytes => {
                    match response.is_recent(now) {
                        true => CacheLookup::Hit(Arc::clone(response)),
                        false => CacheLookup::Seen,
                    }
                }
                // Keep a recent response to another request in this slot. Otherwise, two requests
                // that share a slot would keep evicting each other.
                CacheSlot::Recorded(response) if response.is_recent(now) => CacheLookup::Miss,
                CacheSlot::Seen(seen) if *seen == hash => CacheLookup::Seen,
                _ if is_single_get(bytes) => {
                    *slot = CacheSlot::Seen(hash);
                    CacheLookup::Miss
                }
                _ => CacheLookup::Miss,
            }
        })
    }

    fn insert(response: RecordedResponse) {
        REPLAY_CACHE.with_borrow_mut(|cache| {
            let hash = cache.hasher.hash_one(&*response.request);
            *cache.slot(hash) = CacheSlot::Recorded(Arc::new(response));
        });
    }

    fn slot(&mut self, hash: u64) -> &mut CacheSlot {
        &mut self.slots[hash as usize % CACHE_SLOTS]
    }
}

impl RecordedResponse {
    fn is_recent(&self, now: Duration) -> bool {
        now.saturating_sub(self.recorded_at) < MAX_REPLAY_AGE
    }
}

/// Whether these bytes are exactly one GET request, from its first byte to the end of its head.
fn is_single_get(bytes: &[u8]) -> bool {
    let mut windows = bytes.windows(END_OF_HEAD.len());
    let first_end = windows.position(|window| window == END_OF_HEAD);
    bytes.starts_with(b"GET ") && first_end == Some(bytes.len() - END_OF_HEAD.len())
}

/// Whether this is the complete head of a 200 response without a Connection header. A head with
/// such a header is valid only for the connection on which it was sent.
fn is_replayable(head: &[u8]) -> bool {
    let name = b"connection:";
    let mut lines = head.split(|&byte| byte == b'\n');
    let has_connection_header = lines.any(|line| {
        let start = line.get(..name.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(name))
    });
    head.starts_with(b"HTTP/1.1 200 ") && head.ends_with(END_OF_HEAD) && !has_connection_header
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use http::Request;
    use uncopied_http::{ServeFiles, Stream, StreamOptions};

    use super::*;

    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n";
    const BODY: &[u8] = include_bytes!("../../../../Cargo.toml");
    const REQUEST: &[u8] = b"GET /Cargo.toml HTTP/1.1\r\nHost: a\r\n\r\n";

    /// A scripted stream. Each read returns one of `packets`. Each write accepts the number of
    /// bytes that is next in `accepts`, or all bytes once `accepts` is empty.
    #[derive(Default)]
    struct ScriptedStream {
        packets: VecDeque<&'static [u8]>,
        accepts: VecDeque<io::Result<usize>>,
        written: Vec<u8>,
    }

    impl AsyncRead for ScriptedStream {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            match self.packets.pop_front() {
                None => Poll::Pending,
                Some(packet) => {
                    buf.put_slice(packet);
                    Poll::Ready(Ok(()))
                }
            }
        }
    }

    impl AsyncWrite for ScriptedStream {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let count = self.accepts.pop_front().unwrap_or(Ok(usize::MAX))?;
            let count = count.min(bytes.len());
            self.written.extend_from_slice(&bytes[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn body() -> FileBody {
        let files = ServeFiles::builder(env!("CARGO_MANIFEST_DIR")).build();
        // Leak `files`, so that the file stays open, as it does in a server. If the file were
        // closed, the check before a replay would fail.
        let files = Box::leak(Box::new(files.expect("a directory")));
        let request = Request::builder().uri("/Cargo.toml").body(());
        let mut response = files.respond(request.expect("a request"));
        loop {
            let cx = &mut Context::from_waker(Waker::noop());
            if let Poll::Ready(response) = Pin::new(&mut response).poll(cx) {
                return response.expect("infallible").into_body();
            }
        }
    }

    /// Returns a stream that has recorded the response to [`REQUEST`], so that the next such
    /// request is replayed.
    fn replay_stream() -> ReplayStream<ScriptedStream> {
        let ours = std::os::unix::net::UnixStream::pair().expect("a pair").0;
        ours.set_nonblocking(true).expect("non-blocking");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build();
        let runtime = runtime.expect("a runtime");
        let _entered = runtime.enter();
        let ours = tokio::net::UnixStream::from_std(ours).expect("registered");
        let activity = Stream::unix(ours, StreamOptions::default()).activity();
        let connection = Arc::new(ConnectionState::new(activity, false));
        let stats = Some(Arc::new(WorkerStats::default()));
        let mut replay_stream = ReplayStream::new(
            ScriptedStream::default(),
            connection,
            stats,
            FrameWatch::default(),
        );
        REPLAY_CACHE.with_borrow_mut(|cache| cache.slots.fill(CacheSlot::Empty));
        replay_stream.stream.packets = [REQUEST; 2].into();
        for _ in 0..2 {
            assert_eq!(
                read(&mut replay_stream, MAX_REQUEST_BYTES).expect("forwarded"),
                REQUEST
            );
        }
        replay_stream.connection.recorder.record_basis(&body());
        replay_stream.finish_recording(&[IoSlice::new(HEAD), IoSlice::new(BODY)]);
        replay_stream
    }

    fn read(replay_stream: &mut ReplayStream<ScriptedStream>, room: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; room];
        let mut buf = ReadBuf::new(&mut bytes);
        // Poll more than once, because a `Check` may yield to other tasks.
        for _ in 0..3 {
            let cx = &mut Context::from_waker(Waker::noop());
            if let Poll::Ready(read) = Pin::new(&mut *replay_stream).poll_read(cx, &mut buf) {
                read?;
                break;
            }
        }
        Ok(buf.filled().to_vec())
    }

    #[test]
    fn a_replay_is_complete_however_few_bytes_each_write_accepts() {
        for sizes in [&[][..], &[1, 2, 3], &[HEAD.len()], &[HEAD.len() + 1, 5]] {
            let mut replay_stream = replay_stream();
            replay_stream.stream.packets = [REQUEST; 2].into();
            replay_stream.stream.accepts = sizes.iter().map(|&size| Ok(size)).collect();
            assert_eq!(
                read(&mut replay_stream, MAX_REQUEST_BYTES).expect("replayed"),
                b""
            );
            let response = [HEAD, BODY].concat();
            assert_eq!(replay_stream.stream.written, response.repeat(2));
        }
    }

    #[test]
    fn nothing_follows_a_replay_that_was_cut_short() {
        let mut replay_stream = replay_stream();
        replay_stream.stream.packets = [REQUEST, b"other"].into();
        replay_stream.stream.accepts = [Ok(7), Err(io::ErrorKind::BrokenPipe.into())].into();
        for _ in 0..3 {
            let error = read(&mut replay_stream, MAX_REQUEST_BYTES).expect_err("cut short");
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        }
        let cx = &mut Context::from_waker(Waker::noop());
        let write = Pin::new(&mut replay_stream).poll_write(cx, b"other");
        assert!(matches!(write, Poll::Ready(Err(_))), "{write:?}");
        assert_eq!(replay_stream.stream.written, HEAD[..7]);
    }

    #[test]
    fn bytes_read_without_hyper_are_forwarded_completely() {
        let mut replay_stream = replay_stream();
        replay_stream.stream.packets = [REQUEST, b"GET /other HTTP/1.1\r\n"].into();
        let cx = &mut Context::from_waker(Waker::noop());
        let ready = (0..3).any(|_| replay_stream.poll_without_hyper(cx).is_ready());
        assert!(ready, "an unknown request needs hyper");
        assert_eq!(replay_stream.stream.written, [HEAD, BODY].concat());
        // If hyper writes before it reads the forwarded bytes, the write must not lose any of them.
        let written = Pin::new(&mut replay_stream).poll_write(cx, b"early");
        assert!(matches!(written, Poll::Ready(Ok(5))), "{written:?}");
        let mut all = Vec::new();
        while all.len() < 21 {
            all.extend(read(&mut replay_stream, 5).expect("forwarded"));
        }
        assert_eq!(all, b"GET /other HTTP/1.1\r\n");
    }

    #[test]
    fn bytes_that_are_put_back_are_read_again() {
        let mut replay_stream = replay_stream();
        replay_stream.stream.packets = [REQUEST].into();
        replay_stream.put_back(b"GET /other HTTP/1.1\r\n\r\n");
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(replay_stream.poll_without_hyper(cx).is_ready());
        let first = read(&mut replay_stream, MAX_REQUEST_BYTES).expect("forwarded");
        assert_eq!(first, b"GET /other HTTP/1.1\r\n\r\n");
        assert_eq!(
            read(&mut replay_stream, MAX_REQUEST_BYTES).expect("replayed"),
            b""
        );
        assert_eq!(replay_stream.stream.written, [HEAD, BODY].concat());
    }

    #[test]
    fn only_a_single_get_is_recognized() {
        let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert!(is_single_get(get.as_bytes()));
        for other in [
            &get.repeat(2),
            &get[..get.len() - 1],
            &format!("\r\n{get}"),
            &format!("{get}\r\n\r\n"),
            &get.replace("GET", "PUT"),
            "\r\n\r\n",
            "",
        ] {
            assert!(!is_single_get(other.as_bytes()), "{other:?}");
        }
    }

    #[test]
    fn only_complete_200_heads_without_a_connection_header_are_replayable() {
        assert!(is_replayable(HEAD));
        for head in [
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: y\r\nConnection:close\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: y\r\n",
            "HTTP/1.1 206 Partial Content\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\n",
        ] {
            assert!(!is_replayable(head.as_bytes()), "{head:?}");
        }
    }
}
