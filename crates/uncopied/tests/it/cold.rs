//! Files that are not in the page cache.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::fs::{Advice, fadvise};
use uncopied::residency;

use crate::harness::{content, skip};

const SIZE: u64 = 5_000_001;

/// A file on the disk that `target` is on, so that it can leave the page cache.
fn file_on_disk() -> File {
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.write_all_at(&content(SIZE as usize), 0).unwrap();
    file.sync_all().unwrap();
    file
}

/// Whether the file could be evicted, to the last page. A file system in memory keeps all of them, and
/// any may keep those that are still on their way to the disk for a moment.
fn evict(file: &File) -> bool {
    let page = rustix::param::page_size();
    for _ in 0..50 {
        fadvise(file, 0, None, Advice::DontNeed).unwrap();
        let mut pages = (0..SIZE).step_by(page);
        if pages.all(|at| !residency::is_resident(file, at, 1)) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

#[test]
fn a_cold_file_is_told_from_a_warm_one() {
    let file = file_on_disk();
    assert!(residency::is_resident(&file, 0, SIZE));
    if !evict(&file) {
        let why = "the file system of the target directory evicts nothing";
        return skip("cold::a_cold_file_is_told_from_a_warm_one", why);
    }
    assert!(!residency::is_resident(&file, 4097, 1));
    assert!(residency::is_resident(&file, SIZE, 1), "past the end");

    residency::load(&file, 0, 4096);
    assert!(residency::is_resident(&file, 0, 4096));
    assert!(residency::is_resident(&file, 17, 1));
    assert!(!residency::is_resident(&file, 0, SIZE));

    residency::load(&file, 0, u64::MAX);
    assert!(residency::is_resident(&file, 0, SIZE));
    assert!(residency::is_resident(&file, 0, u64::MAX));
}

/// A cold file is loaded by a thread that may block, a warm one by none. The guard: `load_if_cold` in
/// `drive::tokio`.
#[cfg(feature = "tokio")]
#[test]
fn the_event_loop_does_not_wait_for_the_disk() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use uncopied::{Mechanism, SendFile};

    use crate::harness::{Family, assert_all_by, pair, receive, set_nonblocking};

    let file = file_on_disk();
    for mechanism in Mechanism::ALL {
        for cold in [false, true] {
            if cold && !evict(&file) {
                let why = "the file system of the target directory evicts nothing";
                return skip("cold::the_event_loop_does_not_wait_for_the_disk", why);
            }
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
            let expected = crate::harness::file_of(SIZE as usize);
            let receiver = std::thread::spawn(move || receive(&mut peer, &expected, 0));
            let report = runtime.block_on(async {
                let socket = tokio::net::UnixStream::from_std(socket.into()).unwrap();
                let send = SendFile::new(&file).mechanisms(&[mechanism]);
                send.to_tokio(&socket).await.unwrap()
            });
            assert_all_by(&report, mechanism, SIZE, "cold or warm");
            assert_eq!(receiver.join().unwrap(), SIZE);
            let threads = threads.load(Ordering::Relaxed);
            assert_eq!(threads > 0, cold, "{mechanism}: {threads} threads started");
        }
    }
}
