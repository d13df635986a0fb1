//! Files that are not in the page cache.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::fs::{Advice, fadvise};
use uncopied::residency;

use crate::harness::{pattern, skip};

const FILE_BYTES: u64 = 5_000_001;

/// The number of times that a test tries to evict a file from the page cache before it gives up. An
/// attempt can fail, because pages with I/O in progress cannot be evicted.
const MAX_EVICTIONS: usize = 50;

/// Creates a file in Cargo's target directory. That directory is usually on a disk, so that the
/// file can be evicted from the page cache. The system's directory for temporary files is often in
/// memory.
fn file_on_disk() -> File {
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.write_all_at(&pattern(FILE_BYTES as usize), 0).unwrap();
    file.sync_all().unwrap();
    file
}

/// Asks the kernel to drop the file from the page cache.
fn evict(file: &File) {
    fadvise(file, 0, None, Advice::DontNeed).unwrap();
}

/// Evicts the file repeatedly, until the range is reported as not resident. Returns false if that
/// never happens, for example because the file system keeps its files in memory.
///
/// Each check follows a new eviction, because the check itself may trigger read-ahead.
fn is_cold_after_eviction(file: &File, offset: u64, len: u64) -> bool {
    (0..MAX_EVICTIONS).any(|nth| {
        if nth > 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        evict(file);
        !residency::is_resident(file, offset, len)
    })
}

#[test]
fn is_resident_distinguishes_cached_and_uncached_ranges() {
    let file = file_on_disk();
    assert!(residency::is_resident(&file, 0, FILE_BYTES));
    if !is_cold_after_eviction(&file, 0, FILE_BYTES) {
        let why = "the file system of the target directory evicts nothing";
        let test = "residency::is_resident_distinguishes_cached_and_uncached_ranges";
        return skip(test, why);
    }
    for (offset, len) in [
        (0, 1),
        (4097, 1),
        (FILE_BYTES - 1, 1),
        (FILE_BYTES / 2, u64::MAX),
    ] {
        assert!(is_cold_after_eviction(&file, offset, len));
    }
    evict(&file);
    assert!(residency::is_resident(&file, FILE_BYTES, 1), "past the end");

    residency::prefetch_blocking(&file, 0, 4096);
    assert!(residency::is_resident(&file, 0, 4096));
    assert!(residency::is_resident(&file, 17, 1));
    assert!(!residency::is_resident(&file, 0, FILE_BYTES));

    residency::prefetch_blocking(&file, 0, u64::MAX);
    assert!(residency::is_resident(&file, 0, FILE_BYTES));
    assert!(residency::is_resident(&file, 0, u64::MAX));
}

/// If a file is not in the page cache, a thread of tokio's blocking pool must read it first. If the
/// file is in the page cache, no such thread may be started. Fails without `prefetch_if_uncached`
/// in `driver::tokio`.
#[cfg(feature = "tokio")]
#[test]
fn the_event_loop_does_not_wait_for_the_disk() {
    use uncopied::Mechanism;

    let file = file_on_disk();
    if !is_cold_after_eviction(&file, 0, FILE_BYTES) {
        let why = "the file system of the target directory evicts nothing";
        return skip("residency::the_event_loop_does_not_wait_for_the_disk", why);
    }
    for mechanism in Mechanism::FILE_TO_SOCKET {
        residency::prefetch_blocking(&file, 0, FILE_BYTES);
        assert_eq!(threads_started(&file, mechanism), 0, "{mechanism}, warm");
        let prefetched = (0..MAX_EVICTIONS).any(|_| {
            evict(&file);
            threads_started(&file, mechanism) > 0
        });
        assert!(
            prefetched,
            "{mechanism}: no thread was started for the cold file"
        );
    }
}

/// Sends the whole file on a new single-threaded runtime, and returns how many threads of the
/// blocking pool the runtime has started.
#[cfg(feature = "tokio")]
fn threads_started(file: &File, mechanism: uncopied::Mechanism) -> usize {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crate::harness::{
        Family, assert_all_sent_by, pattern_file, receive, set_nonblocking, socket_pair,
    };

    let threads = Arc::new(AtomicUsize::new(0));
    let started = Arc::clone(&threads);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_start(move || {
            started.fetch_add(1, Ordering::Relaxed);
        })
        .build()
        .unwrap();
    let (socket, mut peer) = socket_pair(Family::Unix);
    set_nonblocking(&socket);
    // Let the peer compare the bytes with those of a second file with the same content, because
    // reading the first file would bring it into the page cache.
    let copy = pattern_file(FILE_BYTES as usize);
    let receiver = std::thread::spawn(move || receive(&mut peer, &copy, 0));
    let report = runtime.block_on(async {
        let socket = tokio::net::UnixStream::from_std(socket.into()).unwrap();
        let send = uncopied::SendFile::new(file).force_mechanisms(&[mechanism]);
        send.to_tokio(&socket).await.unwrap()
    });
    assert_all_sent_by(&report, mechanism, FILE_BYTES, "cold or warm");
    assert_eq!(receiver.join().unwrap(), FILE_BYTES);
    threads.load(Ordering::Relaxed)
}
