//! Files that are truncated while a layer or an I/O object between the body and the stream reads
//! the frames. The stream must send nothing of what was read past the new end of the file.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use uncopied::arena::FileMapping;
use uncopied_http::{FileBody, Stream};

use crate::delivery_harness::{FIRST_FRAME_BYTES, Files, assert_same, with_timeout};

const KIB: usize = 1 << 10;

/// The capacity of the [`BufWriter`]. The head of a response and the first frame of a body are
/// longer together, so the `BufWriter` passes them on.
const BUFFER_BYTES: usize = 100;

/// The last bytes of the file, which fit into the buffer of the [`BufWriter`].
const TAIL_BYTES: usize = 50;
const FILE_BYTES: usize = 7 * 64 * KIB + TAIL_BYTES;

/// Serves one request over `io`, and returns the body that the client gets: nothing if the
/// connection is closed before the head of the response has been sent.
async fn serve_once(
    io: impl FnOnce(Stream) -> Box<dyn Io>,
    body: impl Body<Data = Bytes, Error = io::Error> + Send + 'static,
) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let stream = Stream::from(listener.accept().await.unwrap().0);
    let body = Mutex::new(Some(body));
    let service = service_fn(move |_: Request<Incoming>| {
        let body = body.lock().unwrap().take().unwrap();
        async move { Ok::<_, Infallible>(Response::new(body)) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(io(stream)), service);
    let request = async {
        let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        client.write_all(request).await.unwrap();
        let mut response = Vec::new();
        // The server may reset the connection instead of closing it.
        let _ = client.read_to_end(&mut response).await;
        response
    };
    let (_, response) = with_timeout(async { tokio::join!(connection, request) }).await;
    let head = response.windows(4).position(|four| four == b"\r\n\r\n");
    head.map_or(Vec::new(), |head| response[head + 4..].to_vec())
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Passes slices on unread. Calls `at_limit` when the body's bytes up to `limit` have been written.
struct Limited<T, F> {
    inner: T,
    head: usize,
    written: usize,
    limit: usize,
    at_limit: Option<F>,
}

impl<T: AsyncRead + Unpin, F: Unpin> AsyncRead for Limited<T, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin, F: FnOnce() + Unpin> AsyncWrite for Limited<T, F> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.head == 0 {
            let end = slices[0].windows(4).position(|four| four == b"\r\n\r\n");
            self.head = end.expect("the head comes first") + 4;
        }
        let left = (self.head + self.limit).saturating_sub(self.written);
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        let written = match left {
            1.. if total > left && slices.len() == 1 => {
                Pin::new(&mut self.inner).poll_write(cx, &slices[0][..left])
            }
            _ => Pin::new(&mut self.inner).poll_write_vectored(cx, slices),
        };
        if let Poll::Ready(Ok(written)) = written {
            self.written += written;
            if self.written >= self.head + self.limit
                && let Some(at_limit) = self.at_limit.take()
            {
                at_limit();
            }
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Copies everything that it is asked to write before it passes it on, but only after `copy_from`
/// bytes have been written.
struct CopiesLater<T> {
    inner: T,
    written: usize,
    copy_from: usize,
}

impl<T: AsyncRead + Unpin> AsyncRead for CopiesLater<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for CopiesLater<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = if self.written >= self.copy_from {
            let copy = bytes.to_vec();
            Pin::new(&mut self.inner).poll_write(cx, &copy)
        } else {
            Pin::new(&mut self.inner).poll_write(cx, bytes)
        };
        if let Poll::Ready(Ok(written)) = written {
            self.written += written;
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = slices.iter().find(|slice| !slice.is_empty());
        self.poll_write(cx, first.map_or(&[], |slice| slice))
    }
}

/// A layer that adds up the bytes of each frame, as one does that computes a digest, and passes the
/// frame on. Calls `before_read` before it reads a frame after the first.
struct Digest<F> {
    inner: FileBody,
    frames: usize,
    /// How many bytes were read.
    read: Arc<AtomicU64>,
    sum: Arc<AtomicU64>,
    before_read: F,
}

impl<F: FnMut() + Unpin> Body for Digest<F> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.frames += 1;
            if self.frames > 1 {
                (self.before_read)();
            }
            let bytes = frame.data_ref().unwrap();
            self.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            let sum = bytes.iter().map(|&byte| u64::from(byte)).sum();
            self.sum.fetch_add(sum, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Asserts that the client got at most the first `len` bytes of the file.
fn assert_cut(files: &Files, got: &[u8], len: usize) {
    let file = Arc::new(std::fs::File::open(files.path(0)).unwrap());
    let mapped = FileMapping::new(file, 0..1);
    assert!(mapped.is_ok(), "without mappings, this test shows nothing");
    assert!(got.len() <= len, "{} bytes, expected {len}", got.len());
    assert_same(got, &files.contents[0][..got.len()], "what was sent");
}

/// `BufWriter` passes long slices on and copies short ones. So the end of a body whose other bytes
/// reached the stream unread may be read.
#[tokio::test]
async fn a_buf_writer_reads_the_end_of_a_truncated_file() {
    let files = Files::of(&[FILE_BYTES]);
    let truncated = Arc::clone(&files);
    let left = FILE_BYTES - TAIL_BYTES;
    let io = move |stream| {
        let limited = Limited {
            inner: stream,
            head: 0,
            written: 0,
            limit: left,
            at_limit: Some(move || truncated.set_len(0, left as u64)),
        };
        Box::new(BufWriter::with_capacity(BUFFER_BYTES, limited)) as Box<dyn Io>
    };
    let body = FileBody::from_file(Arc::clone(&files.open[0]), 0..FILE_BYTES as u64);
    let got = serve_once(io, body).await;
    assert_same(&got, &files.contents[0][..left], "what was sent");
}

/// The same, without the truncation: what is read must be right.
#[tokio::test]
async fn an_io_object_that_copies_late_copies_the_right_bytes() {
    let files = Files::of(&[FILE_BYTES]);
    // The first frame is longer than 50 bytes. So with one of these limits, it is passed on, and
    // the slice of the mapped file that follows it is copied from its first byte on.
    let around_first_frame = (0..=1000).step_by(50);
    for copy_from in around_first_frame.chain([70_000, FILE_BYTES - TAIL_BYTES]) {
        let io = |inner| {
            Box::new(CopiesLater {
                inner,
                written: 0,
                copy_from,
            }) as Box<dyn Io>
        };
        let body = FileBody::from_file(Arc::clone(&files.open[0]), 0..FILE_BYTES as u64);
        let got = serve_once(io, body).await;
        assert_same(&got, &files.contents[0], &copy_from.to_string());
    }
}

/// A digest is computed of the frames that are passed on. The file is truncated before the second
/// frame is read, which is a slice of the mapped file.
#[tokio::test]
async fn a_layer_that_reads_and_passes_on_sends_no_byte_past_the_end() {
    for left in [0, 100, 64 * KIB, FILE_BYTES - 1] {
        let files = Files::of(&[FILE_BYTES]);
        let truncated = Arc::clone(&files);
        let read = Arc::new(AtomicU64::new(0));
        let body = Digest {
            inner: FileBody::from_file(Arc::clone(&files.open[0]), 0..FILE_BYTES as u64),
            frames: 0,
            read: Arc::clone(&read),
            sum: Arc::default(),
            before_read: move || truncated.set_len(0, left as u64),
        };
        let got = serve_once(|stream| Box::new(stream) as Box<dyn Io>, body).await;
        let read = read.load(Ordering::Relaxed);
        assert_eq!(read, FILE_BYTES as u64, "the missing bytes must be read");
        assert_cut(&files, &got, left.max(FIRST_FRAME_BYTES));
    }
}

/// Without a truncation, such a layer gets the right bytes, and so does the peer.
#[tokio::test]
async fn a_layer_that_reads_and_passes_on_reads_the_right_bytes() {
    let files = Files::of(&[FILE_BYTES]);
    let expected: u64 = files.contents[0].iter().map(|&byte| u64::from(byte)).sum();
    let sum = Arc::new(AtomicU64::new(0));
    let body = Digest {
        inner: FileBody::from_file(Arc::clone(&files.open[0]), 0..FILE_BYTES as u64),
        frames: 0,
        read: Arc::default(),
        sum: Arc::clone(&sum),
        before_read: || {},
    };
    let got = serve_once(|stream| Box::new(stream) as Box<dyn Io>, body).await;
    assert_same(&got, &files.contents[0], "the body");
    assert_eq!(sum.load(Ordering::Relaxed), expected);
}
