//! The stream without an HTTP server: how it sends the slices that the tests write to it.

use std::fs::File;
use std::io::{ErrorKind, IoSlice};
use std::os::fd::AsFd;
use std::sync::Arc;

use bytes::Bytes;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use uncopied::arena::FileMapping;
use uncopied::{Errno, Mechanism};
use uncopied_http::{FileBody, Listener, Stream, StreamOptions, Totals};

use crate::delivery_harness::{Files, Rng, assert_same, random_bytes, stream_pair, with_timeout};

/// Maps a whole file, and returns its bytes in the arena.
pub(crate) fn mapped(files: &Files, at: usize) -> Bytes {
    let file = File::open(files.path(at)).unwrap();
    let len = files.contents[at].len() as u64;
    FileMapping::new(Arc::new(file), 0..len).unwrap().bytes()
}

/// Returns options for a stream, and the totals in which a stream with these options counts its
/// bytes.
fn counting() -> (StreamOptions, Arc<Totals>) {
    let totals = Arc::new(Totals::default());
    (StreamOptions::default().totals(Arc::clone(&totals)), totals)
}

/// Reads in pieces of random sizes, with occasional pauses.
async fn read_with_pauses(mut io: impl AsyncRead + Unpin, mut rng: Rng) -> Vec<u8> {
    let mut all = Vec::new();
    let mut piece = vec![0; 40_000];
    loop {
        let most = 1 + rng.below(piece.len());
        match io.read(&mut piece[..most]).await.unwrap() {
            0 => return all,
            read => all.extend_from_slice(&piece[..read]),
        }
        if rng.below(16) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
}

/// Writes all pieces with vectored writes of up to `most` slices each, as hyper does.
async fn write_all(stream: &mut Stream, pieces: &[Bytes], most: usize) {
    let mut left: Vec<Bytes> = pieces.to_vec();
    left.reverse();
    while left.iter().any(|piece| !piece.is_empty()) {
        let slices: Vec<_> = left.iter().rev().take(most).collect();
        let slices: Vec<_> = slices.iter().map(|piece| IoSlice::new(piece)).collect();
        if slices.iter().all(|slice| slice.is_empty()) {
            left.truncate(left.len().saturating_sub(most));
            continue;
        }
        let mut written = with_timeout(stream.write_vectored(&slices)).await.unwrap();
        assert!(written > 0);
        while let Some(piece) = left.pop() {
            if piece.len() > written {
                left.push(piece.slice(written..));
                break;
            }
            written -= piece.len();
        }
    }
    stream.flush().await.unwrap();
}

#[tokio::test]
async fn slices_of_memory_and_of_files_arrive_in_every_order() {
    let files = Files::of(&[5000, 70_001, 3_000_000]);
    let maps: Vec<_> = (0..3).map(|at| mapped(&files, at)).collect();
    let mut rng = Rng(5);
    for round in 0..60 {
        let mut pieces = Vec::new();
        let mut of_files = 0;
        for _ in 0..1 + rng.below(12) {
            let piece = match rng.below(5) {
                0 => Bytes::new(),
                1 | 2 => Bytes::from(random_bytes(rng.below(3000), round)),
                // Choose one of the files more often, so that some neighbouring slices belong to
                // the same file.
                _ => {
                    let map = &maps[[0, 0, 1, 2][rng.below(4)]];
                    let start = rng.below(map.len());
                    let end = start + rng.below(map.len() - start + 1);
                    of_files += end - start;
                    map.slice(start..end)
                }
            };
            pieces.push(piece);
        }
        if round % 4 == 0 {
            of_files += 2 * maps[0].len();
            pieces.extend([maps[0].clone(), maps[0].clone()]);
        }
        let expected: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
        let (options, totals) = counting();
        let mechanism = Mechanism::FILE_TO_SOCKET[round as usize % 4];
        let options = options.force_mechanisms(&[mechanism, Mechanism::Copy]);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut stream, reader) = if round % 3 == 0 {
            SockRef::from(&ours).set_send_buffer_size(4096).unwrap();
            let reading = read_with_pauses(theirs, Rng(round));
            (Stream::unix(ours, options), tokio::spawn(reading))
        } else {
            let (stream, theirs) = stream_pair(options).await;
            let reading = read_with_pauses(theirs, Rng(round));
            (stream, tokio::spawn(reading))
        };
        write_all(&mut stream, &pieces, [1, 2, 64][rng.below(3)]).await;
        stream.shutdown().await.unwrap();
        let got = with_timeout(reader).await.unwrap();
        assert_same(&got, &expected, &format!("round {round}"));
        if mechanism != Mechanism::Copy {
            assert_eq!(totals.bytes(mechanism), of_files as u64, "{mechanism}");
            let plain = (expected.len() - of_files) as u64;
            assert_eq!(totals.bytes(Mechanism::Copy), plain);
        }
    }
}

#[tokio::test]
async fn a_write_of_one_slice_is_sent_from_its_file() {
    let files = Files::of(&[200_000]);
    let map = mapped(&files, 0);
    let (options, totals) = counting();
    let (mut stream, theirs) = stream_pair(options).await;
    let reader = tokio::spawn(read_with_pauses(theirs, Rng(1)));
    stream.write_all(&map[77..150_000]).await.unwrap();
    stream.write_all(b"").await.unwrap();
    stream.shutdown().await.unwrap();
    let got = with_timeout(reader).await.unwrap();
    assert_same(&got, &files.contents[0][77..150_000], "the slice");
    assert_eq!(totals.bytes(Mechanism::Sendfile), 150_000 - 77);
    assert_eq!(totals.bytes(Mechanism::Copy), 0);
}

/// `sendmsg` fails with `EMSGSIZE` for more than 1024 slices, so the stream must split them.
#[tokio::test]
async fn more_slices_than_one_call_accepts_all_arrive() {
    let files = Files::of(&[50_000]);
    let mut pieces: Vec<_> = (0..3000)
        .map(|at| Bytes::from(random_bytes(1 + at % 7, at as u64)))
        .collect();
    pieces.insert(2500, mapped(&files, 0));
    let expected: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
    let (mut stream, theirs) = stream_pair(StreamOptions::default()).await;
    let reader = tokio::spawn(read_with_pauses(theirs, Rng(1)));
    write_all(&mut stream, &pieces, usize::MAX).await;
    drop(stream);
    assert_same(
        &with_timeout(reader).await.unwrap(),
        &expected,
        "all slices",
    );
}

/// If the bytes of a file cannot be sent, the stream must not send any other bytes in their place.
/// In this test, the failing call reports only the head as written, and the file gets its old
/// length back before the next call. All further calls must still fail, so the stream has to
/// remember the failure.
#[tokio::test]
async fn nothing_is_written_after_a_file_fails() {
    for mechanism in Mechanism::FILE_TO_SOCKET {
        let files = Files::of(&[100_000]);
        let map = mapped(&files, 0);
        files.set_len(0, 0);
        let options = StreamOptions::default().force_mechanisms(&[mechanism]);
        let (mut stream, theirs) = stream_pair(options).await;
        let reader = tokio::spawn(read_with_pauses(theirs, Rng(1)));
        let slices = [IoSlice::new(b"head"), IoSlice::new(&map)];
        assert_eq!(stream.write_vectored(&slices).await.unwrap(), 4);
        files.set_len(0, 100_000);
        let error = stream.write(&map).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{mechanism}");
        assert!(error.to_string().contains("100000"), "{error}");
        for _ in 0..3 {
            let error = stream.write(b"the next response").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{mechanism}");
        }
        drop(stream);
        assert_eq!(with_timeout(reader).await.unwrap(), b"head");
    }
}

/// If a write blocks and its future is dropped, the caller may go on to write other bytes. The
/// stream must send exactly those bytes.
#[tokio::test]
async fn other_bytes_after_a_blocked_write_are_sent_as_they_are() {
    for mechanism in Mechanism::FILE_TO_SOCKET {
        let files = Files::of(&[8 << 20, 300_000]);
        let (map, other) = (mapped(&files, 0), mapped(&files, 1));
        let options = StreamOptions::default().force_mechanisms(&[mechanism]);
        let (mut stream, theirs) = stream_pair(options).await;
        let mut at = 0;
        // Write until the socket accepts no more bytes.
        let pause = std::time::Duration::from_millis(100);
        while let Ok(written) = tokio::time::timeout(pause, stream.write(&map[at..])).await {
            at += written.unwrap();
            assert!(at < map.len(), "the peer does not read");
        }
        let reader = tokio::spawn(read_with_pauses(theirs, Rng(3)));
        let pieces = [
            other.slice(5..100_000),
            map.slice(at + 1..at + 70_000),
            Bytes::from_static(b"plain"),
            map.slice(at..at + 70_000),
        ];
        write_all(&mut stream, &pieces, 1).await;
        drop(stream);
        let mut expected = files.contents[0][..at].to_vec();
        expected.extend(pieces.iter().flat_map(|piece| piece.to_vec()));
        let got = with_timeout(reader).await.unwrap();
        assert_same(&got, &expected, &mechanism.to_string());
    }
}

#[tokio::test]
async fn a_peer_that_is_gone_causes_an_error_and_no_signal() {
    for mechanism in Mechanism::FILE_TO_SOCKET {
        let files = Files::of(&[8 << 20]);
        let map = mapped(&files, 0);
        let options = StreamOptions::default().force_mechanisms(&[mechanism]);
        let (mut stream, theirs) = stream_pair(options).await;
        drop(theirs);
        let error = with_timeout(stream.write_all(&map)).await.unwrap_err();
        let kinds = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
        assert!(kinds.contains(&error.kind()), "{mechanism}: {error}");
        let inner: uncopied::Error = error.downcast().expect("the error of the transfer");
        assert_eq!(inner.mechanism(), Some(mechanism));
        let errno = inner.raw_os_error().map(Errno::from_raw_os_error);
        let errnos = [Errno::PIPE, Errno::CONNRESET];
        assert!(errnos.iter().any(|it| Some(*it) == errno), "{errno:?}");
    }
}

/// The stream and the body must stay small, because every connection, even an idle one, keeps them
/// in addition to hyper's buffers and the kernel's socket.
#[test]
fn an_idle_stream_is_small() {
    assert!(size_of::<Stream>() <= 128, "{}", size_of::<Stream>());
    assert!(size_of::<FileBody>() <= 104, "{}", size_of::<FileBody>());
}

#[tokio::test]
async fn accepted_connections_have_nodelay_set() {
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (_client, accepted) =
        tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
    let (stream, _) = accepted.unwrap();
    assert!(SockRef::from(&stream.as_fd()).tcp_nodelay().unwrap());
}
