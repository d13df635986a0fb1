//! Files that are not in the page cache.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::fs::{Advice, fadvise};
use uncopied::residency;

use crate::harness::{content, skip};

const SIZE: u64 = 5_000_001;

/// Pages that are still on their way to or from the disk stay for a moment.
const TRIES: usize = 50;

/// A file on the disk that `target` is on, so that it can leave the page cache.
fn file_on_disk() -> File {
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.write_all_at(&content(SIZE as usize), 0).unwrap();
    file.sync_all().unwrap();
    file
}

fn evict(file: &File) {
    fadvise(file, 0, None, Advice::DontNeed).unwrap();
}

/// Whether the range is told to be cold once it has been evicted. A file system in memory evicts
/// nothing. Asking may start reading ahead, so that each question needs an eviction of its own.
fn is_cold_after_eviction(file: &File, offset: u64, len: u64) -> bool {
    (0..TRIES).any(|nth| {
        if nth > 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        evict(file);
        !residency::is_resident(file, offset, len)
    })
}

#[test]
fn a_cold_file_is_told_from_a_warm_one() {
    let file = file_on_disk();
    assert!(residency::is_resident(&file, 0, SIZE));
    if !is_cold_after_eviction(&file, 0, SIZE) {
        let why = "the file system of the target directory evicts nothing";
        return skip("cold::a_cold_file_is_told_from_a_warm_one", why);
    }
    for (offset, len) in [(0, 1), (4097, 1), (SIZE - 1, 1), (SIZE / 2, u64::MAX)] {
        assert!(is_cold_after_eviction(&file, offset, len));
    }
    evict(&file);
    assert!(residency::is_resident(&file, SIZE, 1), "past the end");

    residency::prefetch_blocking(&file, 0, 4096);
    assert!(residency::is_resident(&file, 0, 4096));
    assert!(residency::is_resident(&file, 17, 1));
    assert!(!residency::is_resident(&file, 0, SIZE));

    residency::prefetch_blocking(&file, 0, u64::MAX);
    assert!(residency::is_resident(&file, 0, SIZE));
    assert!(residency::is_resident(&file, 0, u64::MAX));
}

/// A cold file is loaded by a thread that may block, a warm one by none. The guard: `load_if_cold` in
/// `driver::tokio`.
#[cfg(feature = "tokio")]
#[test]
fn the_event_loop_does_not_wait_for_the_disk() {
    use uncopied::Mechanism;

    let file = file_on_disk();
    if !is_cold_after_eviction(&file, 0, SIZE) {
        let why = "the file system of the target directory evicts nothing";
        return skip("cold::the_event_loop_does_not_wait_for_the_disk", why);
    }
    for mechanism in Mechanism::FILE_TO_SOCKET {
        residency::prefetch_blocking(&file, 0, SIZE);
        assert_eq!(threads_started(&file, mechanism), 0, "{mechanism}, warm");
        let loaded = (0..TRIES).any(|_| {
            evict(&file);
            threads_started(&file, mechanism) > 0
        });
        assert!(loaded, "{mechanism}: no thread has loaded the cold file");
    }
}

/// Sends the whole file on a runtime of its own: how many threads that took besides the event loop's.
#[cfg(feature = "tokio")]
fn threads_started(file: &File, mechanism: uncopied::Mechanism) -> usize {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crate::harness::{Family, assert_all_by, file_of, pair, receive, set_nonblocking};

    let threads = Arc::new(AtomicUsize::new(0));
    let started = Arc::clone(&threads);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_start(move || {
            started.fetch_add(1, Ordering::Relaxed);
        })
        .build()
        .unwrap();
    let (socket, mut peer) = pair(Family::Unix);
    set_nonblocking(&socket);
    // Compared with the file itself, it would be loaded by the peer.
    let same = file_of(SIZE as usize);
    let receiver = std::thread::spawn(move || receive(&mut peer, &same, 0));
    let report = runtime.block_on(async {
        let socket = tokio::net::UnixStream::from_std(socket.into()).unwrap();
        let send = uncopied::SendFile::new(file).force_mechanisms(&[mechanism]);
        send.to_tokio(&socket).await.unwrap()
    });
    assert_all_by(&report, mechanism, SIZE, "cold or warm");
    assert_eq!(receiver.join().unwrap(), SIZE);
    threads.load(Ordering::Relaxed)
}
