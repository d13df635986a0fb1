//! File bodies that are polled directly, without a server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use http_body::Body;
use http_body_util::BodyExt;
use uncopied_http::{BodyPart, FileBody};

use crate::delivery_harness::{Files, assert_same, with_timeout};

struct WakeCounter(AtomicUsize);

impl Wake for WakeCounter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Polls a body to its end. Returns its bytes, and how many polls returned `Pending`. Asserts that
/// each of those polls has woken the task, because otherwise the body would never be polled again.
fn drain(mut body: FileBody) -> std::io::Result<(Vec<u8>, usize)> {
    let wakes = Arc::new(WakeCounter(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&wakes));
    let mut bytes = Vec::new();
    let mut pending = 0;
    loop {
        let frame = std::pin::Pin::new(&mut body).poll_frame(&mut Context::from_waker(&waker));
        match frame {
            Poll::Ready(None) => return Ok((bytes, pending)),
            Poll::Ready(Some(frame)) => bytes.extend_from_slice(&frame?.into_data().unwrap()),
            Poll::Pending => {
                pending += 1;
                assert_eq!(
                    wakes.0.load(Ordering::Relaxed),
                    pending,
                    "a pending poll must wake the task"
                );
            }
        }
    }
}

#[test]
fn a_body_needs_no_runtime_and_never_hangs() {
    let files = Files::of(&[300_001]);
    for is_buffered in [false, true] {
        let body = FileBody::from_file(Arc::clone(&files.open[0]), 3..300_000);
        let body = if is_buffered { body.buffered() } else { body };
        let (bytes, pending) = drain(body).unwrap();
        assert_same(&bytes, &files.contents[0][3..300_000], "the body");
        // After its first frame, a body in the default mode returns `Pending` once, so that the
        // connection can flush that frame.
        assert_eq!(pending, usize::from(!is_buffered), "one chance to flush");
    }
}

#[test]
fn a_cold_body_needs_no_runtime() {
    let files = Files::of(&[300_001]);
    files.evict_from(0, 0);
    let body = FileBody::from_file(Arc::clone(&files.open[0]), 0..300_001);
    assert_same(&drain(body).unwrap().0, &files.contents[0], "the body");
}

/// A body can be created with a range that reaches beyond the end of the file. In every mode, such
/// a body must yield the bytes up to the end of the file, and then fail.
#[tokio::test]
async fn a_range_beyond_the_end_is_an_error() {
    let files = Files::of(&[100_000]);
    let max = u64::MAX;
    for (range, have) in [
        (0..100_001, 100_000),
        (50_000..200_000, 50_000),
        (99_999..max, 1),
        (100_000..100_001, 0),
        (100_001..100_002, 0),
        (1 << 40..(1 << 40) + 5, 0),
        (max - 1..max, 0),
        (max - 70_000..max, 0),
    ] {
        for is_buffered in [false, true] {
            let body = FileBody::from_file(Arc::clone(&files.open[0]), range.clone());
            let mut body = if is_buffered { body.buffered() } else { body };
            let mut got = 0;
            let error = loop {
                match with_timeout(body.frame())
                    .await
                    .expect("the body must not end cleanly")
                {
                    Ok(frame) => {
                        let len = frame.into_data().unwrap().len();
                        assert!(len > 0, "an empty frame makes no progress");
                        got += len;
                    }
                    Err(error) => break error,
                }
            };
            assert_eq!(got, have, "{range:?} {is_buffered}");
            assert!(!error.to_string().is_empty());
            assert!(body.frame().await.is_none(), "the error is reported once");
        }
    }
}

#[tokio::test]
async fn part_lengths_that_overflow_are_an_error() {
    let files = Files::of(&[10]);
    let part = BodyPart::File(Arc::clone(&files.open[0]), 0..u64::MAX);
    let body = FileBody::from_parts([part.clone(), part]);
    assert_eq!(body.size_hint().exact(), Some(u64::MAX));
    assert!(with_timeout(body.collect()).await.is_err());
}

/// If the file has grown since it was opened, a body whose range includes the new bytes must yield
/// them. If the file has shrunk, a body whose range includes the removed bytes must fail.
#[tokio::test]
async fn a_file_that_changed_its_length_is_read_to_its_current_end() {
    let files = Files::of(&[100_000]);
    files.set_len(0, 150_000);
    let body = FileBody::from_file(Arc::clone(&files.open[0]), 90_000..150_000);
    let got = with_timeout(body.collect()).await.unwrap().to_bytes();
    assert_eq!(got.len(), 60_000);
    assert_eq!(got[..10_000], files.contents[0][90_000..]);
    assert!(got[10_000..].iter().all(|&byte| byte == 0));
    files.set_len(0, 10_000);
    let body = FileBody::from_file(Arc::clone(&files.open[0]), 0..100_000);
    let error = with_timeout(body.collect()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}
