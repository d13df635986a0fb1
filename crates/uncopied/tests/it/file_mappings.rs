//! File mappings: look-ups from several threads, and files that are written to or truncated while
//! code reads them.

use std::fs::File;
use std::io::IoSlice;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mm::MlockAllFlags;
use rustix::process::{Resource, Rlimit};
use uncopied::arena::{FileMapping, Located, MissingBytes, Region, locate};
use uncopied::policy::{Length, Plan};
use uncopied::{Errno, ErrorKind, Mechanism, Transfer, driver, send_vectored};

use crate::harness::{
    FAMILIES, Family, in_child, pattern, pattern_file, receive, socket_pair, wait_until,
};

/// Several threads map files, look up slices of the mappings with [`locate`], and pass the slices
/// to another thread, which looks them up again and unmaps the files. A look-up must always find
/// the mapping that the slice was taken from, and the slice must contain the bytes of that file.
#[test]
fn many_threads_map_and_look_up_concurrently() {
    const THREADS: u64 = 8;
    const ROUNDS: u64 = 300;
    let (send, receive) = std::sync::mpsc::channel::<(bytes::Bytes, Arc<File>, u64)>();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let send = send.clone();
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let id = (thread * ROUNDS + round).to_le_bytes();
                    let file = tempfile::tempfile().unwrap();
                    file.write_all_at(&id, 4096).unwrap();
                    let file = Arc::new(file);
                    // Alternate between mappings that fill one granule of the arena and mappings
                    // that span several.
                    let len = [10_000, 2 << 20, (4 << 20) + 1][(round % 3) as usize];
                    let mapping = FileMapping::new(Arc::clone(&file), 0..len).unwrap();
                    let bytes = mapping.bytes().slice(4096..4104);
                    drop(mapping);
                    let (mapping, offset) = file_at(&bytes);
                    assert!(Arc::ptr_eq(mapping.file(), &file));
                    assert_eq!(offset, 4096);
                    send.send((bytes, file, u64::from_le_bytes(id))).unwrap();
                }
            });
        }
        drop(send);
        // This thread did not create the mappings. It looks up each slice again, and unmaps the
        // file by dropping the last handle to the mapping.
        for (bytes, file, id) in receive {
            let (mapping, offset) = file_at(&bytes[3..]);
            assert!(Arc::ptr_eq(mapping.file(), &file));
            assert_eq!(offset, 4099);
            assert_eq!(bytes[..], id.to_le_bytes());
        }
    });
}

/// The addresses of a dropped mapping are used again, here by a region. [`locate`] must then find
/// no file at these addresses. Fails if dropping a mapping leaves its entry in the owner table:
/// `locate` would then follow the entry's pointer to freed memory.
#[test]
fn addresses_of_a_dropped_mapping_have_no_owner() {
    in_child(
        "file_mappings::addresses_of_a_dropped_mapping_have_no_owner",
        |_| {},
        || {
            const MAPPING_BYTES: u64 = 5 << 20;
            let file = Arc::new(tempfile::tempfile().unwrap());
            let mapping = FileMapping::new(file, 0..MAPPING_BYTES).unwrap();
            let bytes = mapping.bytes();
            let address = bytes.as_ptr().addr();
            assert!(locate(&bytes[4 << 20..]).is_some());
            drop((mapping, bytes));
            let (_region, writer) = Region::new(4 << 20).unwrap();
            assert_eq!(writer.as_ptr().addr(), address, "not the same addresses");
            for at in [0, 2 << 20] {
                assert!(locate(&writer[at..at + 10]).is_none(), "at {at}");
            }
        },
    );
}

/// A mapping gets the addresses of several shorter ones that were dropped, and is read there.
/// Fails, by hanging, if a dropped mapping stays in the list in which the mapping of a page is
/// looked up.
#[test]
fn a_mapping_at_the_addresses_of_dropped_ones_is_read() {
    in_child(
        "file_mappings::a_mapping_at_the_addresses_of_dropped_ones_is_read",
        |_| {},
        || {
            const GRANULE: u64 = 2 << 20;
            let file = Arc::new(pattern_file(4 * GRANULE as usize));
            let map = |range| FileMapping::new(Arc::clone(&file), range).unwrap();
            let short: Vec<_> = (0..4).map(|_| map(0..GRANULE)).collect();
            let first = short[0].bytes().as_ptr();
            for mapping in &short {
                assert_eq!(mapping.bytes()[..1000], pattern(1000));
            }
            drop(short);
            // The thread that reads the pages may still have a handle to a mapping.
            let mut long = None;
            wait_until("the same addresses", || {
                let mapping = map(0..4 * GRANULE);
                long = (mapping.bytes().as_ptr() == first).then_some(mapping);
                long.is_some()
            });
            assert!(long.unwrap().bytes()[..] == pattern(4 * GRANULE as usize));
        },
    );
}

/// Returns the mapping that contains `bytes`, and the offset of the first of these bytes in the
/// file.
fn file_at(bytes: &[u8]) -> (FileMapping, u64) {
    match locate(bytes) {
        Some(Located::File { mapping, offset }) => (mapping, offset),
        other => panic!("not in a file mapping: {other:?}"),
    }
}

/// Addresses past the end of a mapping do not belong to the mapping, even if they are in its last
/// page.
#[test]
fn a_look_up_past_the_end_of_a_mapping_finds_nothing() {
    let file = Arc::new(pattern_file(5_000));
    let mapping = FileMapping::new(file, 0..4_999).unwrap();
    let bytes = mapping.bytes();
    assert_eq!(bytes.len(), 4_999);
    let (mapping, offset) = file_at(&bytes[4_998..]);
    assert_eq!((offset, mapping.len()), (4_998, 4_999));
    assert!(locate(&bytes[4_999..]).is_none());
}

/// Mapping fails for a file from which no position can be read, and for an invalid range.
#[test]
fn mapping_an_unsupported_file_or_an_invalid_range_is_an_error() {
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let (socket, _peer) = socket_pair(Family::Unix);
    let path = std::env::temp_dir().join(format!("write-only-{}", std::process::id()));
    let write_only = File::create(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    let directory = File::open("/").unwrap();
    for (file, name) in [
        (File::from(reader), "a pipe"),
        (File::from(socket), "a socket"),
        (write_only, "a file that is not open for reading"),
        (directory, "a directory"),
    ] {
        let file = Arc::new(file);
        for _ in 0..10 {
            let mapped = FileMapping::new(Arc::clone(&file), 0..4096);
            assert!(mapped.is_err(), "{name}");
        }
    }
    let file = Arc::new(pattern_file(10));
    let (start, end) = (4096, 0);
    assert!(FileMapping::new(Arc::clone(&file), start..end).is_err());
    assert!(FileMapping::new(Arc::clone(&file), 0..u64::MAX).is_err());
    assert!(FileMapping::new(file, 1 << 63..(1 << 63) + 1).is_err());
}

/// Other programs can write to a file at any time. Bytes that safe code has read through a mapping
/// must not change then: here a `str` would stop being UTF-8, which is undefined behaviour.
#[test]
fn bytes_that_were_read_never_change() {
    const PAGES: usize = 40;
    let page = rustix::param::page_size();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at("é".repeat(PAGES * page / 2).as_bytes(), 0)
        .unwrap();
    let file = Arc::new(file);
    let mapping = FileMapping::new(Arc::clone(&file), 0..(PAGES * page) as u64).unwrap();
    let bytes = mapping.bytes();
    let (first, rest) = bytes.split_at(page);
    let text = std::str::from_utf8(first).unwrap();
    file.write_all_at(&vec![b'x'; PAGES * page], 0).unwrap();
    assert_eq!(text, "é".repeat(page / 2));
    assert_eq!(std::str::from_utf8(first), Ok(text));
    // The last page has not been read before, so it shows the new content.
    assert_eq!(rest[rest.len() - page..], vec![b'x'; page]);
    file.set_len(0).unwrap();
    assert_eq!(text, "é".repeat(page / 2));
    assert!(!mapping.missing_bytes().were_read());
}

/// Code that reads the bytes of a truncated file gets zeroes and can find that out; it must not get
/// SIGBUS. The child process would be killed by that signal.
#[test]
fn reading_a_truncated_file_raises_no_signal() {
    in_child(
        "file_mappings::reading_a_truncated_file_raises_no_signal",
        |_| {},
        || {
            let page = rustix::param::page_size();
            let len = 64 * page;
            let file = Arc::new(pattern_file(len));
            let record = MissingBytes::default();
            let range = 0..len as u64;
            let mapping = FileMapping::with_record(Arc::clone(&file), range, &record).unwrap();
            let bytes = mapping.bytes();
            file.set_len(2 * page as u64 + 100).unwrap();
            assert_eq!(bytes[..2 * page], pattern(2 * page));
            assert!(!record.were_read());
            assert_eq!(
                bytes[2 * page..2 * page + 100],
                pattern(len)[2 * page..][..100]
            );
            assert_eq!(bytes[2 * page + 100..], vec![0; len - 2 * page - 100]);
            assert!(record.were_read());
        },
    );
}

/// A record that is shared says that bytes of any of its mappings were missing.
#[test]
fn mappings_can_share_a_record_of_missing_bytes() {
    let file = Arc::new(pattern_file(10));
    let record = MissingBytes::default();
    let [short, long] = [10, 10_000].map(|end| {
        let file = Arc::clone(&file);
        FileMapping::with_record(file, 0..end, &record).unwrap()
    });
    let other = FileMapping::new(file, 0..10_000).unwrap();
    assert!(short.missing_bytes().is_same(long.missing_bytes()));
    assert!(!short.missing_bytes().is_same(other.missing_bytes()));
    assert_eq!(long.bytes().last(), Some(&0));
    assert!(short.missing_bytes().were_read() && !other.missing_bytes().were_read());
}

/// Later transfers leave out what has failed for the file.
#[test]
fn a_mapping_remembers_refused_mechanisms() {
    let file = Arc::new(pattern_file(10));
    let [mapping, other] = [(); 2].map(|()| FileMapping::new(Arc::clone(&file), 0..10).unwrap());
    let refused = [Mechanism::Sendfile, Mechanism::MmapWrite];
    for mechanism in refused {
        mapping.note_refusal(mechanism);
    }
    for mechanism in Mechanism::ALL {
        let is_refused = refused.contains(&mechanism);
        assert_eq!(mapping.has_refused(mechanism), is_refused, "{mechanism}");
        assert!(!other.has_refused(mechanism), "{mechanism}");
    }
}

/// Several threads read the bytes of the same mapping for the first time, at the same time and in
/// different orders.
#[test]
fn many_threads_read_the_same_mapping() {
    const THREADS: usize = 8;
    const LEN: usize = 3_000_001;
    let file = Arc::new(pattern_file(LEN));
    let expected = pattern(LEN);
    for round in 0..10 {
        let start = round * 1111;
        let mapping = FileMapping::new(Arc::clone(&file), start as u64..LEN as u64).unwrap();
        let bytes = mapping.bytes();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (bytes, expected) = (&bytes, &expected);
                scope.spawn(move || {
                    let step = 1 + thread * 5000;
                    let in_order = (0..bytes.len()).step_by(step);
                    let order: Vec<usize> = match thread % 2 {
                        0 => in_order.collect(),
                        _ => in_order.rev().collect(),
                    };
                    for at in order {
                        assert_eq!(bytes[at], expected[start + at], "at {at}");
                    }
                });
            }
        });
        assert!(!mapping.missing_bytes().were_read());
    }
}

/// `mlockall` fills all memory that can be read. If it filled that of a mapping before reads of the
/// mapping are intercepted, the mapping would consist of zeroes.
#[test]
fn locking_all_memory_meanwhile_fills_no_mapping() {
    in_child(
        "file_mappings::locking_all_memory_meanwhile_fills_no_mapping",
        |_| {},
        || {
            const MAPPINGS: usize = 10_000;
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(b"content", 0).unwrap();
            let file = Arc::new(file);
            let is_done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !is_done.load(Ordering::Relaxed) {
                        let _ = rustix::mm::mlockall(MlockAllFlags::CURRENT);
                        rustix::mm::munlockall().unwrap();
                    }
                });
                let is_wrong = |_: &usize| {
                    let mapping = FileMapping::new(Arc::clone(&file), 0..7).unwrap();
                    mapping.bytes()[..] != b"content"[..]
                };
                let wrong = (0..MAPPINGS).find(is_wrong);
                is_done.store(true, Ordering::Relaxed);
                assert_eq!(wrong, None);
            });
        },
    );
}

/// If the first mapping fails because the process has too many descriptors, a later one must work.
#[test]
fn mapping_works_again_after_descriptors_ran_out() {
    in_child(
        "file_mappings::mapping_works_again_after_descriptors_ran_out",
        |_| {},
        || {
            let file = Arc::new(pattern_file(5000));
            let limit = rustix::process::getrlimit(Resource::Nofile);
            let none = Rlimit {
                current: Some(3),
                ..limit
            };
            rustix::process::setrlimit(Resource::Nofile, none).unwrap();
            let error = FileMapping::new(Arc::clone(&file), 0..5000).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::MFILE.raw_os_error()));
            rustix::process::setrlimit(Resource::Nofile, limit).unwrap();
            let mapping = FileMapping::new(file, 0..5000).unwrap();
            assert_eq!(mapping.bytes()[..], pattern(5000));
            assert_eq!(mapping.read_bytes(), 8192);
        },
    );
}

/// Any number of mappings, each read and dropped, must leave no memory behind.
#[test]
fn dropped_mappings_leave_no_memory() {
    in_child(
        "file_mappings::dropped_mappings_leave_no_memory",
        |_| {},
        || {
            const LEN: usize = 4 << 20;
            let file = Arc::new(pattern_file(LEN));
            let read_once = || {
                let mapping = FileMapping::new(Arc::clone(&file), 0..LEN as u64).unwrap();
                assert_eq!(mapping.bytes()[..], pattern(LEN));
            };
            read_once();
            let before = resident_bytes();
            for _ in 0..50 {
                read_once();
            }
            let grown = resident_bytes().saturating_sub(before);
            assert!(grown < 2 * LEN, "{grown} bytes");
        },
    );
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

/// A file is truncated after it was mapped. Nobody has read the bytes, so passing them to a system
/// call fails with `EFAULT`, and a transfer of the file fails with an error. Neither may raise
/// SIGBUS.
#[test]
fn truncating_a_mapped_file_raises_no_sigbus() {
    let page = rustix::param::page_size();
    let file = Arc::new(pattern_file(8 * page));
    let mapping = FileMapping::new(Arc::clone(&file), 0..8 * page as u64).unwrap();
    let bytes = mapping.bytes();
    let (socket, peer) = socket_pair(Family::Tcp);
    for _ in 0..2 {
        let sent = send_vectored(&socket, &[IoSlice::new(&bytes)], false);
        let efault = Some(Errno::FAULT.raw_os_error());
        assert_eq!(sent.unwrap_err().raw_os_error(), efault);
        file.set_len(2 * page as u64).unwrap();
    }
    drop((socket, peer));

    for family in FAMILIES {
        let (length, plan) = (Length::Exact(8 * page as u64), [Mechanism::MmapWrite]);
        let mut transfer = Transfer::new(0, length, Plan::of(&plan));
        let (socket, mut peer) = socket_pair(family);
        let error = driver::blocking::run(&mut transfer, &file, &socket).unwrap_err();
        drop(socket);
        let promised = 8 * page as u64;
        assert_eq!(
            error.kind(),
            ErrorKind::SourceTooShort { promised },
            "{error}"
        );
        assert_eq!(error.moved(), 2 * page as u64);
        assert_eq!(receive(&mut peer, &file, 0), 2 * page as u64);
    }
}

#[test]
fn transfers_leak_neither_descriptors_nor_mappings() {
    crate::harness::in_child(
        "file_mappings::transfers_leak_neither_descriptors_nor_mappings",
        |_| {},
        || {
            let file = pattern_file(700_001);
            let count = || {
                let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
                let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
                // Count only mappings of the temporary file, because heap mappings come and go. The
                // file is unlinked, so `maps` marks its mappings as `(deleted)`.
                let mappings = maps.lines().filter(|line| line.contains("(deleted)"));
                (descriptors, mappings.count())
            };
            let transfers = || {
                for mechanism in Mechanism::FILE_TO_SOCKET {
                    for &driver in crate::harness::DRIVERS {
                        let forced = [mechanism];
                        let send = uncopied::SendFile::new(&file).force_mechanisms(&forced);
                        let (result, _) =
                            crate::harness::deliver(driver, Family::Unix, &send, &file, 0);
                        result.unwrap();
                        let (socket, peer) = socket_pair(Family::Unix);
                        drop(peer);
                        send.to(&socket).unwrap_err();
                    }
                }
            };
            transfers();
            let before = count();
            for _ in 0..20 {
                transfers();
            }
            assert_eq!(count(), before);
            assert_eq!(before.1, 0, "a file is still mapped");
        },
    );
}
