//! `FileBody::open` and `OpenFile::open`, which take a file that the program has already opened.

use std::fs::File;
use std::io;
use std::ops::Bound;
use std::sync::Arc;

use http_body_util::BodyExt;
use uncopied_http::{FileBody, OpenFile};

use crate::delivery_harness::{Files, assert_same, runtime};

async fn bytes_of(body: FileBody) -> Vec<u8> {
    body.collect().await.unwrap().to_bytes().to_vec()
}

#[tokio::test]
async fn a_body_opens_from_every_kind_of_file() {
    let files = Files::of(&[0, 1, 5_000, 300_000]);
    for (at, content) in files.contents.iter().enumerate() {
        let std_file = || File::open(files.path(at)).unwrap();
        let tokio_file = tokio::fs::File::open(files.path(at)).await.unwrap();
        let shared = OpenFile::open(std_file()).await.unwrap();
        let bodies = [
            FileBody::open(std_file(), ..).await,
            FileBody::open(tokio_file, ..).await,
            FileBody::open(Arc::new(std_file()), ..).await,
            FileBody::open(&shared, ..).await,
            FileBody::open(shared, ..).await,
        ];
        for body in bodies {
            assert_same(&bytes_of(body.unwrap()).await, content, "the file");
        }
    }
}

#[tokio::test]
async fn responses_share_an_open_file() {
    let files = Files::of(&[300_000]);
    let shared = OpenFile::open(File::open(files.path(0)).unwrap())
        .await
        .unwrap();
    let first = FileBody::open(&shared, ..).await.unwrap();
    let second = FileBody::open(Arc::clone(&shared), ..).await.unwrap();
    assert_eq!(Arc::strong_count(&shared), 3);
    drop((first, second));
    assert_eq!(Arc::strong_count(&shared), 1);
}

#[tokio::test]
async fn the_position_of_the_file_does_not_matter() {
    use std::io::{Seek, SeekFrom};

    let files = Files::of(&[5_000, 300_000]);
    for (at, content) in files.contents.iter().enumerate() {
        let mut file = File::open(files.path(at)).unwrap();
        file.seek(SeekFrom::Start(77)).unwrap();
        let body = FileBody::open(file, ..).await.unwrap();
        assert_same(&bytes_of(body).await, content, "the file");
    }
}

#[tokio::test]
async fn every_kind_of_range_is_taken() {
    let files = Files::of(&[5_000, 300_000]);
    for (open, content) in files.open.iter().zip(&files.contents) {
        let len = content.len() as u64;
        let of = async |range: (Bound<u64>, Bound<u64>)| {
            bytes_of(FileBody::open(open, range).await.unwrap()).await
        };
        use Bound::{Excluded, Included, Unbounded};
        let from_100 = of((Included(100), Unbounded)).await;
        assert_same(&from_100, &content[100..], "100..");
        let to_last = of((Excluded(99), Included(len - 1))).await;
        assert_same(&to_last, &content[100..], "100..=last");
        let up_to = of((Unbounded, Excluded(len))).await;
        assert_same(&up_to, content, "..len");
        assert!(of((Included(len), Unbounded)).await.is_empty());
    }
}

#[tokio::test]
async fn ranges_that_the_file_does_not_have_are_errors() {
    let files = Files::of(&[0, 5_000]);
    for (open, content) in files.open.iter().zip(&files.contents) {
        let len = content.len() as u64;
        let ranges = [
            (Bound::Included(0), Bound::Excluded(len + 1)),
            (Bound::Included(len + 1), Bound::Unbounded),
            (Bound::Included(0), Bound::Included(len)),
            (Bound::Included(0), Bound::Included(u64::MAX)),
            (Bound::Excluded(u64::MAX), Bound::Unbounded),
            (Bound::Included(2), Bound::Excluded(1)),
        ];
        for range in ranges {
            let error = FileBody::open(open, range).await.unwrap_err();
            assert_eq!(
                error.kind(),
                io::ErrorKind::InvalidInput,
                "{range:?}: {error}"
            );
        }
    }
}

#[tokio::test]
async fn only_regular_files_are_opened() {
    for path in ["/", "/dev/null"] {
        let error = FileBody::open(File::open(path).unwrap(), ..)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}: {error}");
    }
}

/// To open a small file, `FileBody::open` first tries to read it from the page cache alone. If the
/// file is not cached, that attempt must not close the file, because the blocking pool then reads
/// from it.
#[tokio::test]
async fn cold_files_are_read_on_the_blocking_pool() {
    let files = Files::of(&[10_000, 300_000]);
    for (at, content) in files.contents.iter().enumerate() {
        files.evict_from(at, 0);
        let body = FileBody::open(File::open(files.path(at)).unwrap(), ..).await;
        assert_same(&bytes_of(body.unwrap()).await, content, "the cold file");
    }
}

#[test]
fn files_are_opened_without_a_runtime() {
    let files = Files::of(&[10_000]);
    files.evict_from(0, 0);
    let file = File::open(files.path(0)).unwrap();
    let open = Box::pin(OpenFile::open(file));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(opened) = std::future::Future::poll(std::pin::pin!(open), &mut cx)
    else {
        panic!("without a runtime, nothing could wake the future");
    };
    let body = FileBody::from_file(opened.unwrap(), 0..10_000);
    let bytes = runtime().block_on(bytes_of(body));
    assert_same(&bytes, &files.contents[0], "the file");
}
