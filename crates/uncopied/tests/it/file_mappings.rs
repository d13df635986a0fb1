//! File mappings: look-ups from several threads, and files that are truncated.

use std::fs::File;
use std::io::IoSlice;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use uncopied::arena::{FileMapping, Located, Region, locate};
use uncopied::policy::{Length, Plan};
use uncopied::{Errno, ErrorKind, Mechanism, Transfer, driver, send_vectored};

use crate::harness::{
    FAMILIES, Family, assert_all_sent_by, in_child, pattern, pattern_file, receive, socket_pair,
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

/// Mapping fails for a file that cannot be mapped, and for an invalid range.
#[test]
fn mapping_an_unsupported_file_or_an_invalid_range_is_an_error() {
    for path in ["/proc/version", "/proc/self/auxv", "/"] {
        let file = Arc::new(File::open(path).unwrap());
        for _ in 0..10 {
            assert!(
                FileMapping::new(Arc::clone(&file), 0..4096).is_err(),
                "{path}"
            );
        }
    }
    let file = Arc::new(pattern_file(10));
    let (start, end) = (4096, 0);
    assert!(FileMapping::new(Arc::clone(&file), start..end).is_err());
    assert!(FileMapping::new(Arc::clone(&file), 0..u64::MAX).is_err());
    assert!(FileMapping::new(file, 1 << 63..(1 << 63) + 1).is_err());
}

/// A transfer that is given a mapping must send from that mapping. If the mapping covers only a
/// part of the range, the transfer must map the rest itself.
#[test]
fn a_transfer_uses_the_mapping_that_it_is_given() {
    let file = Arc::new(pattern_file(3_000_000));
    let page = rustix::param::page_size() as u64;
    for family in FAMILIES {
        for mapped in [0..3_000_000, 0..page, page..2 * page, 10 * page..2_000_000] {
            let mapping = FileMapping::new(Arc::clone(&file), mapped).unwrap();
            let (length, plan) = (Length::UntilEof, Plan::of(&[Mechanism::MmapWrite]));
            let mut transfer = Transfer::new(5, length, plan).with_mapping(&mapping);
            let (socket, mut peer) = socket_pair(family);
            let source = &file;
            std::thread::scope(|scope| {
                let receiver = scope.spawn(move || receive(&mut peer, source, 5));
                driver::blocking::run(&mut transfer, source, &socket).unwrap();
                drop(socket);
                assert_eq!(receiver.join().unwrap(), 2_999_995);
            });
            assert_all_sent_by(transfer.report(), Mechanism::MmapWrite, 2_999_995, "mapped");
        }
    }
}

/// A file is truncated after it was mapped. A transfer of the file must fail with an error, and
/// sending the mapped bytes directly must fail with `EFAULT` or send fewer bytes. Neither may raise
/// SIGBUS.
#[test]
fn truncating_a_mapped_file_raises_no_sigbus() {
    let page = rustix::param::page_size();
    let file = Arc::new(pattern_file(8 * page));
    let mapping = FileMapping::new(Arc::clone(&file), 0..8 * page as u64).unwrap();
    let bytes = mapping.bytes();

    file.set_len(2 * page as u64).unwrap();
    let (socket, mut peer) = socket_pair(Family::Tcp);
    let efault = Some(Errno::FAULT.raw_os_error());
    let sent = send_vectored(&socket, &[IoSlice::new(&bytes)], false);
    match sent {
        Ok(sent) => assert!(
            sent <= 2 * page,
            "{sent} bytes were sent of a file of {}",
            2 * page
        ),
        Err(ref error) => assert_eq!(error.raw_os_error(), efault),
    }
    let beyond = send_vectored(&socket, &[IoSlice::new(&bytes[2 * page..])], false);
    assert_eq!(beyond.unwrap_err().raw_os_error(), efault);
    drop(socket);
    let mut received = Vec::new();
    std::io::Read::read_to_end(&mut peer, &mut received).unwrap();
    assert_eq!(received, pattern(8 * page)[..sent.unwrap_or(0)]);

    for family in FAMILIES {
        let (length, plan) = (Length::Exact(8 * page as u64), [Mechanism::MmapWrite]);
        let transfer = Transfer::new(0, length, Plan::of(&plan));
        let mut transfer = transfer.with_mapping(&mapping);
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
