//! A request that is, byte for byte, one that was answered a moment ago gets the same answer, byte for
//! byte, without hyper.
//!
//! To read a request and to write a head takes hyper, and us, as long as a third of the whole of a small
//! answer. Clients of a busy server ask for the same things in the same words. So [`Repeats`], below
//! hyper, keeps the heads of the answers that hyper gave, each beside the bytes of its request, and gives
//! them again:
//!
//! ```text
//!   bytes of a request ── known? ── no ──▶ hyper ──▶ Answers ──▶ head, body ──▶ stream
//!                          │ yes                       │ basis      │ head
//!                          ▼                           ▼            ▼
//!                    does its basis hold?            what is known: request, head, basis
//!                          │ yes
//!                          ▼
//!                    head as kept, body from the file ──▶ stream
//! ```
//!
//! Nothing is read here: equal bytes are equal requests. Nothing is stale: each time the kernel is asked
//! whether the file is still the one that was sent ([`Basis`]). A head is kept for [`KEPT_FOR`], so that its
//! `Date` is right. What an answer stands on besides (side files, a page in the place of another, a body that
//! came with the request) leaves it to hyper, as do answers that are not a whole file (ranges, preconditions that
//! fail), and an access log, whose lines tell what hyper has read.
//!
//! The connection must be between two requests: then hyper holds no byte and waits for none but these.

use std::cell::RefCell;
use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::BuildHasher;
use std::io::{self, IoSlice};
use std::mem::{self, MaybeUninit};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use uncopied::arena::locate;
use uncopied_http::{Basis, Check, FileBody};

use super::table::Seat;
use super::thread::Shared;

/// How long a head is given again. hyper itself writes a `Date` for a second.
const KEPT_FOR: Duration = Duration::from_millis(500);

/// How many heads a thread keeps, at most: with the requests and the small bodies less than 5 MiB.
const SLOTS: usize = 256;

/// The longest request that is looked at, in bytes.
const LONGEST: usize = 2048;

/// After so many repeats in a row a connection does without hyper's part, until there is need for it.
const ENOUGH: u8 = 8;

/// The longest body that is kept with its head, in bytes.
const WHOLE: usize = 16 << 10;

const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// A stream that answers by itself the requests that were answered a moment ago.
pub(crate) struct Repeats<S> {
    stream: S,
    seat: Arc<Seat>,
    /// Where its answers are counted; `None` leaves all of them to hyper.
    counts: Option<Arc<Shared>>,
    state: State,
}

enum State {
    /// Bytes pass through.
    Passing,
    /// The head of the answer to this request is to be kept, when hyper writes it.
    Recording(Box<[u8]>),
    /// This request has come. Is its answer still right?
    Checking(Arc<Kept>, Check),
    /// Its answer is on its way.
    Writing(Writing),
    /// hyper is to get these bytes.
    Handing(Handing),
    /// An answer was cut short, or the connection broke: nothing may come after it.
    Failed(io::ErrorKind),
}

/// Bytes that were read before hyper asked for them.
struct Handing {
    bytes: Box<[u8]>,
    /// How many of them hyper has.
    at: usize,
    /// Whether they are a request whose answer is to be kept.
    is_known: bool,
}

impl<S> Repeats<S> {
    pub(crate) fn new(stream: S, seat: Arc<Seat>, counts: Option<Arc<Shared>>) -> Self {
        Self {
            stream,
            seat,
            counts,
            state: State::Passing,
        }
    }

    /// Keeps the head of the answer to this request, if it is one to be kept.
    fn record(&mut self, request: Box<[u8]>) {
        self.seat.tape.start();
        self.state = State::Recording(request);
    }

    /// hyper's part of the connection goes away, and has read these bytes without need. No answer is under way.
    pub(crate) fn put_back(&mut self, bytes: &[u8]) {
        self.seat.tape.stop();
        if !matches!(self.state, State::Failed(_)) {
            self.state = State::Handing(Handing::of(bytes, false));
        }
    }

    /// The head of the answer under way is the first of these slices, and its body all the others.
    fn keep(&mut self, slices: &[IoSlice<'_>]) {
        let State::Recording(request) = &mut self.state else {
            return;
        };
        let request = mem::take(request);
        self.state = State::Passing;
        let Some((basis, length)) = self.seat.tape.stop() else {
            return;
        };
        let [head, body @ ..] = slices else {
            return;
        };
        let in_slices: usize = body.iter().map(|slice| slice.len()).sum();
        if in_slices as u64 != length || !is_plain(head) {
            return;
        }
        // What is a slice of a file goes out from the file.
        let is_whole = in_slices <= WHOLE && body.iter().all(|slice| locate(slice).is_none());
        let parts = if is_whole { slices } else { &slices[..1] };
        Known::keep(Kept {
            request,
            answer: parts.iter().flat_map(|part| part.iter().copied()).collect(),
            is_whole,
            basis,
            at: self.seat.activity.entered(),
        });
    }
}

impl<S: AsyncWrite + Unpin> Repeats<S> {
    /// Ready when no answer is under way here.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                State::Passing | State::Recording(_) | State::Handing(_) => {
                    return Poll::Ready(Ok(()));
                }
                State::Checking(kept, check) => {
                    let body = ready!(Pin::new(check).poll(cx));
                    let kept = Arc::clone(kept);
                    self.state = match body {
                        // It is answered by hyper.
                        None => State::Handing(Handing::of(&kept.request, true)),
                        Some(body) => {
                            self.seat.requested();
                            self.seat.tape.note_repeat();
                            if let Some(counts) = &self.counts {
                                counts.count_request();
                            }
                            State::Writing(Writing::begin(kept, body))
                        }
                    };
                }
                State::Writing(writing) => {
                    let written = ready!(writing.poll(cx, &mut self.stream));
                    self.state = match &written {
                        Ok(()) => State::Passing,
                        Err(error) => State::Failed(error.kind()),
                    };
                    return Poll::Ready(written);
                }
                State::Failed(kind) => return Poll::Ready(Err((*kind).into())),
            }
        }
    }
}

/// An answer on its way.
struct Writing {
    kept: Arc<Kept>,
    /// How much of what is kept has gone out.
    sent: usize,
    /// What has come of the body and not gone out.
    frame: Bytes,
    /// Where the body comes from that is not kept.
    body: Option<FileBody>,
}

impl Writing {
    fn begin(kept: Arc<Kept>, body: FileBody) -> Self {
        Self {
            // Nothing reads it between here and the stream.
            body: (!kept.is_whole).then(|| body.direct()),
            kept,
            sent: 0,
            frame: Bytes::new(),
        }
    }

    fn poll<S: AsyncWrite + Unpin>(
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
            let head = &self.kept.answer[self.sent..];
            if head.is_empty() && self.frame.is_empty() {
                return Pin::new(stream).poll_flush(cx);
            }
            let slices = &[IoSlice::new(head), IoSlice::new(&self.frame)];
            let slices = match self.frame.is_empty() {
                true => &slices[..1],
                false => slices,
            };
            let written = ready!(Pin::new(&mut *stream).poll_write_vectored(cx, slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_head = written.min(head.len());
            self.sent += of_head;
            self.frame.advance(written - of_head);
        }
    }
}

impl Handing {
    fn of(bytes: &[u8], is_known: bool) -> Self {
        Self {
            bytes: bytes.into(),
            at: 0,
            is_known,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Repeats<S> {
    /// Answers what is known while hyper's part of the connection is not there. Ready when it is needed.
    pub(crate) fn poll_without_hyper(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            // An error is for hyper to meet.
            if ready!(self.poll_answer(cx)).is_err() || matches!(self.state, State::Handing(_)) {
                return Poll::Ready(());
            }
            let mut bytes = [const { MaybeUninit::uninit() }; LONGEST];
            let mut buf = ReadBuf::uninit(&mut bytes);
            let is_known = match ready!(self.poll_request(cx, &mut buf)) {
                Ok(Next::Check) => continue,
                Ok(Next::Record) => true,
                Ok(Next::Pass) => false,
                Err(error) => {
                    self.state = State::Failed(error.kind());
                    return Poll::Ready(());
                }
            };
            if !buf.filled().is_empty() {
                self.state = State::Handing(Handing::of(buf.filled(), is_known));
            }
            return Poll::Ready(());
        }
    }

    /// Reads what may be a request, and takes it back if it can be answered here.
    fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Next>> {
        let may_answer = self.counts.is_some() && self.seat.is_idle();
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let found = match may_answer {
            true => Known::find(&buf.filled()[before..], self.seat.activity.entered()),
            false => Found::Nothing,
        };
        if let Found::Kept(kept) = found {
            buf.set_filled(before);
            let check = kept.basis.check();
            self.state = State::Checking(kept, check);
            return Poll::Ready(Ok(Next::Check));
        }
        self.seat.tape.note_other();
        Poll::Ready(Ok(match found {
            Found::Seen => Next::Record,
            _ => Next::Pass,
        }))
    }
}

/// What is to become of bytes that were read.
enum Next {
    /// They were a request that may be answered here.
    Check,
    /// They are hyper's, and its answer is to be kept.
    Record,
    /// They are hyper's.
    Pass,
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Repeats<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            ready!(this.poll_answer(cx))?;
            if let State::Handing(handing) = &mut this.state {
                let rest = &handing.bytes[handing.at..];
                let count = rest.len().min(buf.remaining());
                buf.put_slice(&rest[..count]);
                handing.at += count;
                if count == rest.len() {
                    let (bytes, is_known) = (mem::take(&mut handing.bytes), handing.is_known);
                    this.state = State::Passing;
                    if is_known {
                        this.record(bytes);
                    }
                }
                return Poll::Ready(Ok(()));
            }
            let before = buf.filled().len();
            match ready!(this.poll_request(cx, buf))? {
                Next::Check => {}
                Next::Record => {
                    this.record(buf.filled()[before..].into());
                    return Poll::Ready(Ok(()));
                }
                Next::Pass => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Repeats<S> {
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
        ready!(this.poll_answer(cx))?;
        this.keep(slices);
        Pin::new(&mut this.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // What is under way here tells the stream of its end by itself.
        match this.state {
            State::Checking(..) | State::Writing(_) => Poll::Ready(Ok(())),
            _ => Pin::new(&mut this.stream).poll_flush(cx),
        }
    }

    /// What is under way here goes out first.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_answer(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

/// How the service above hyper tells what its answer stands on.
#[derive(Default)]
pub(crate) struct Tape {
    is_recording: AtomicBool,
    /// And how long its body is.
    basis: Mutex<Option<(Basis, u64)>>,
    /// How many requests in a row were repeats.
    repeats: AtomicU8,
}

impl Tape {
    /// Whether hyper has had nothing to do lately, and is worth sending away.
    pub(crate) fn repeats_only(&self) -> bool {
        self.repeats.load(Ordering::Relaxed) >= ENOUGH
    }

    fn note_repeat(&self) {
        let repeats = self.repeats.load(Ordering::Relaxed);
        self.repeats
            .store(repeats.saturating_add(1), Ordering::Relaxed);
    }

    fn note_other(&self) {
        self.repeats.store(0, Ordering::Relaxed);
    }

    /// Notes on what the answer stands that is about to be written, if that is asked for.
    pub(crate) fn note(&self, body: &FileBody) {
        if self.is_recording.load(Ordering::Relaxed) {
            let length = body.size_hint().exact();
            *self.lock() = body.basis().cloned().zip(length);
        }
    }

    fn start(&self) {
        *self.lock() = None;
        self.is_recording.store(true, Ordering::Relaxed);
    }

    fn stop(&self) -> Option<(Basis, u64)> {
        self.is_recording.store(false, Ordering::Relaxed);
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Basis, u64)>> {
        // It is whole between any two of the statements that could panic.
        self.basis.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request, and its answer.
struct Kept {
    request: Box<[u8]>,
    /// The head, and the body behind it if `is_whole`.
    answer: Box<[u8]>,
    is_whole: bool,
    basis: Basis,
    /// When it was made.
    at: Duration,
}

/// What a thread knows of the requests that have come, each in the one slot that its hash leads to.
struct Known {
    hasher: RandomState,
    slots: Box<[Slot]>,
}

#[derive(Clone, Default)]
enum Slot {
    #[default]
    Empty,
    /// The hash of a request that came once.
    Seen(u64),
    Kept(Arc<Kept>),
}

enum Found {
    /// Its answer is known.
    Kept(Arc<Kept>),
    /// It has come before.
    Seen,
    Nothing,
}

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::new(Known {
        hasher: RandomState::new(),
        slots: vec![Slot::Empty; SLOTS].into(),
    });
}

impl Known {
    /// What is known of these bytes, which came at that time. If they are one request and nothing else, they
    /// have come before from now on.
    fn find(bytes: &[u8], at: Duration) -> Found {
        if bytes.len() > LONGEST || !bytes.ends_with(END_OF_HEAD) {
            return Found::Nothing;
        }
        KNOWN.with_borrow_mut(|known| {
            let hash = known.hasher.hash_one(bytes);
            let slot = known.slot(hash);
            match slot {
                Slot::Kept(kept) if *kept.request == *bytes => {
                    match at.saturating_sub(kept.at) < KEPT_FOR {
                        true => Found::Kept(Arc::clone(kept)),
                        false => Found::Seen,
                    }
                }
                // It stays for as long as it is of use, or two such requests would drive each other out.
                Slot::Kept(kept) if at.saturating_sub(kept.at) < KEPT_FOR => Found::Nothing,
                Slot::Seen(seen) if *seen == hash => Found::Seen,
                _ if is_one_get(bytes) => {
                    *slot = Slot::Seen(hash);
                    Found::Nothing
                }
                _ => Found::Nothing,
            }
        })
    }

    fn keep(kept: Kept) {
        KNOWN.with_borrow_mut(|known| {
            let hash = known.hasher.hash_one(&*kept.request);
            *known.slot(hash) = Slot::Kept(Arc::new(kept));
        });
    }

    fn slot(&mut self, hash: u64) -> &mut Slot {
        &mut self.slots[hash as usize % SLOTS]
    }
}

/// Whether these bytes are the head of a GET, whole, and nothing behind it.
fn is_one_get(bytes: &[u8]) -> bool {
    let mut windows = bytes.windows(END_OF_HEAD.len());
    let first_end = windows.position(|window| window == END_OF_HEAD);
    bytes.starts_with(b"GET ") && first_end == Some(bytes.len() - END_OF_HEAD.len())
}

/// Whether this is the whole head of a 200 that says nothing about its connection: such a one is for once.
fn is_plain(head: &[u8]) -> bool {
    let name = b"connection:";
    let mut lines = head.split(|&byte| byte == b'\n');
    let is_said = lines.any(|line| {
        let start = line.get(..name.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(name))
    });
    head.starts_with(b"HTTP/1.1 200 ") && head.ends_with(END_OF_HEAD) && !is_said
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use http::Request;
    use uncopied_http::{ServeFiles, Stream, StreamOptions};

    use super::*;

    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n";
    const BODY: &[u8] = include_bytes!("../../Cargo.toml");
    const REQUEST: &[u8] = b"GET /Cargo.toml HTTP/1.1\r\nHost: a\r\n\r\n";

    /// A peer that sends these packets, and a socket that takes so many bytes at a time, then all.
    #[derive(Default)]
    struct Scripted {
        packets: VecDeque<&'static [u8]>,
        takes: VecDeque<io::Result<usize>>,
        taken: Vec<u8>,
    }

    impl AsyncRead for Scripted {
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

    impl AsyncWrite for Scripted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let take = self.takes.pop_front().unwrap_or(Ok(usize::MAX))?;
            let take = take.min(bytes.len());
            self.taken.extend_from_slice(&bytes[..take]);
            Poll::Ready(Ok(take))
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
        // Its files are to stay open, as a server's do.
        let files = Box::leak(Box::new(files.expect("a directory")));
        let request = Request::builder().uri("/Cargo.toml").body(());
        let mut answer = files.respond(request.expect("a request"));
        loop {
            let cx = &mut Context::from_waker(Waker::noop());
            if let Poll::Ready(answer) = Pin::new(&mut answer).poll(cx) {
                return answer.expect("infallible").into_body();
            }
        }
    }

    /// A connection of which [`REQUEST`] is known.
    fn rig() -> Repeats<Scripted> {
        let ours = std::os::unix::net::UnixStream::pair().expect("a pair").0;
        ours.set_nonblocking(true).expect("non-blocking");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build();
        let runtime = runtime.expect("a runtime");
        let _entered = runtime.enter();
        let ours = tokio::net::UnixStream::from_std(ours).expect("watched");
        let activity = Stream::unix(ours, StreamOptions::default()).activity();
        let seat = Arc::new(Seat::new(activity, false));
        let counts = Some(Arc::new(Shared::default()));
        let mut rig = Repeats::new(Scripted::default(), seat, counts);
        KNOWN.with_borrow_mut(|known| known.slots.fill(Slot::Empty));
        rig.stream.packets = [REQUEST; 2].into();
        for _ in 0..2 {
            assert_eq!(read(&mut rig, LONGEST).expect("passed on"), REQUEST);
        }
        rig.seat.tape.note(&body());
        rig.keep(&[IoSlice::new(HEAD), IoSlice::new(BODY)]);
        rig
    }

    fn read(rig: &mut Repeats<Scripted>, room: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; room];
        let mut buf = ReadBuf::new(&mut bytes);
        // A check may wait for others to go first.
        for _ in 0..3 {
            let cx = &mut Context::from_waker(Waker::noop());
            if let Poll::Ready(read) = Pin::new(&mut *rig).poll_read(cx, &mut buf) {
                read?;
                break;
            }
        }
        Ok(buf.filled().to_vec())
    }

    #[test]
    fn an_answer_goes_out_whole_however_little_the_socket_takes() {
        for sizes in [&[][..], &[1, 2, 3], &[HEAD.len()], &[HEAD.len() + 1, 5]] {
            let mut rig = rig();
            rig.stream.packets = [REQUEST; 2].into();
            rig.stream.takes = sizes.iter().map(|&size| Ok(size)).collect();
            assert_eq!(read(&mut rig, LONGEST).expect("answered"), b"");
            let answer = [HEAD, BODY].concat();
            assert_eq!(rig.stream.taken, answer.repeat(2));
        }
    }

    #[test]
    fn nothing_comes_after_an_answer_that_was_cut_short() {
        let mut rig = rig();
        rig.stream.packets = [REQUEST, b"other"].into();
        rig.stream.takes = [Ok(7), Err(io::ErrorKind::BrokenPipe.into())].into();
        for _ in 0..3 {
            let error = read(&mut rig, LONGEST).expect_err("cut short");
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        }
        let cx = &mut Context::from_waker(Waker::noop());
        let write = Pin::new(&mut rig).poll_write(cx, b"other");
        assert!(matches!(write, Poll::Ready(Err(_))), "{write:?}");
        assert_eq!(rig.stream.taken, HEAD[..7]);
    }

    #[test]
    fn bytes_that_were_read_without_hyper_come_to_it_whole() {
        let mut rig = rig();
        rig.stream.packets = [REQUEST, b"GET /other HTTP/1.1\r\n"].into();
        let cx = &mut Context::from_waker(Waker::noop());
        let ready = (0..3).any(|_| rig.poll_without_hyper(cx).is_ready());
        assert!(ready, "what is not known is hyper's");
        assert_eq!(rig.stream.taken, [HEAD, BODY].concat());
        // Nor does it lose any by writing before it reads.
        let written = Pin::new(&mut rig).poll_write(cx, b"early");
        assert!(matches!(written, Poll::Ready(Ok(5))), "{written:?}");
        let mut all = Vec::new();
        while all.len() < 21 {
            all.extend(read(&mut rig, 5).expect("passed on"));
        }
        assert_eq!(all, b"GET /other HTTP/1.1\r\n");
    }

    #[test]
    fn what_hyper_has_read_in_vain_comes_to_it_again() {
        let mut rig = rig();
        rig.stream.packets = [REQUEST].into();
        rig.put_back(b"GET /other HTTP/1.1\r\n\r\n");
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(rig.poll_without_hyper(cx).is_ready());
        let first = read(&mut rig, LONGEST).expect("passed on");
        assert_eq!(first, b"GET /other HTTP/1.1\r\n\r\n");
        assert_eq!(read(&mut rig, LONGEST).expect("answered"), b"");
        assert_eq!(rig.stream.taken, [HEAD, BODY].concat());
    }

    #[test]
    fn one_get_is_one_get() {
        let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert!(is_one_get(get.as_bytes()));
        for other in [
            &get.repeat(2),
            &get[..get.len() - 1],
            &format!("\r\n{get}"),
            &format!("{get}\r\n\r\n"),
            &get.replace("GET", "PUT"),
            "\r\n\r\n",
            "",
        ] {
            assert!(!is_one_get(other.as_bytes()), "{other:?}");
        }
    }

    #[test]
    fn heads_for_one_time_are_not_kept() {
        assert!(is_plain(HEAD));
        for head in [
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: y\r\nConnection:close\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: y\r\n",
            "HTTP/1.1 206 Partial Content\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\n",
        ] {
            assert!(!is_plain(head.as_bytes()), "{head:?}");
        }
    }
}
