//! File sizes around each boundary (a page, 64 KiB, 2 MiB), odd offsets, and ranges past 4 GiB,
//! with every mechanism and driver, and to every kind of socket.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use uncopied::policy::Length;
use uncopied::{ErrorKind, Mechanism, SendFile};

use crate::harness::{
    DRIVERS, Driver, FAMILIES, Family, assert_all_sent_by, deliver, pattern, pattern_file,
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The largest number of bytes that the kernel moves in one call (`MAX_RW_COUNT`).
const MAX_CALL_BYTES: u64 = 0x7fff_f000;

fn for_each_combination(mut run: impl FnMut(Mechanism, Family, Driver)) {
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for family in FAMILIES {
            for &driver in DRIVERS {
                run(mechanism, family, driver);
            }
        }
    }
}

/// Sends the `len` bytes that start at `offset`, with this mechanism alone, and checks that they
/// arrive. If `until_eof` is set, the transfer has no exact length, and runs to the end of the
/// file.
fn check_send(
    (mechanism, family, driver): (Mechanism, Family, Driver),
    file: &File,
    offset: u64,
    len: u64,
    until_eof: bool,
) {
    let case = format!("{mechanism} to {family:?}, {driver:?}: {len} bytes at {offset}");
    let forced = [mechanism];
    let send = SendFile::new(file).force_mechanisms(&forced);
    let send = if until_eof {
        send.range(offset..)
    } else {
        send.range(offset..offset + len)
    };
    let (result, received) = deliver(driver, family, &send, file, offset);
    let report = result.unwrap_or_else(|error| panic!("{case}: {error}"));
    assert_eq!(received, len, "{case}");
    assert_all_sent_by(&report, mechanism, len, &case);
}

#[test]
fn files_of_sizes_around_every_boundary_arrive() {
    let page = rustix::param::page_size() as u64;
    let boundaries = [page, 64 << 10, 2 * MIB];
    let around = boundaries.map(|size| [size - 1, size, size + 1]);
    for size in [0, 1].into_iter().chain(around.into_iter().flatten()) {
        let file = pattern_file(size as usize);
        for_each_combination(|mechanism, family, driver| {
            let combination = (mechanism, family, driver);
            check_send(combination, &file, 0, size, true);
            check_send(combination, &file, 0, size, false);
        });
    }
}

#[test]
fn ranges_at_odd_offsets_arrive() {
    let page = rustix::param::page_size() as u64;
    let size = 3 * MIB + 17;
    let file = pattern_file(size as usize);
    let ranges = [
        (1, 1),
        (1, 0),
        (page - 1, 2),
        (page, page),
        (page + 1, 2 * page - 1),
        (65_535, 65_537),
        (MIB + 3, 2 * MIB),
        (size - 1, 1),
        (size, 0),
    ];
    for_each_combination(|mechanism, family, driver| {
        for (offset, len) in ranges {
            check_send((mechanism, family, driver), &file, offset, len, false);
        }
        check_send((mechanism, family, driver), &file, 777, size - 777, true);
    });
}

#[test]
fn a_transfer_from_past_the_end_moves_nothing() {
    let file = pattern_file(1000);
    for_each_combination(|mechanism, family, driver| {
        for offset in [1000, 1001, 1 << 40, i64::MAX as u64, u64::MAX] {
            let forced = [mechanism];
            let send = SendFile::new(&file)
                .force_mechanisms(&forced)
                .range(offset..);
            let (result, received) = deliver(driver, family, &send, &file, offset);
            assert_all_sent_by(&result.unwrap(), mechanism, 0, "until the end");
            assert_eq!(received, 0);

            let one_byte = send.length(Length::Exact(1));
            let (result, received) = deliver(driver, family, &one_byte, &file, offset);
            let error = result.expect_err("a byte was promised");
            assert_eq!(error.kind(), ErrorKind::SourceTooShort { promised: 1 });
            assert_eq!((error.moved(), received), (0, 0));
        }
    });
}

#[test]
fn a_length_beyond_the_end_is_an_error_that_counts_the_bytes() {
    let file = pattern_file(100_000);
    for_each_combination(|mechanism, family, driver| {
        for promised in [99_991, u64::MAX - 10, u64::MAX] {
            let forced = [mechanism];
            let send = SendFile::new(&file)
                .force_mechanisms(&forced)
                .range(10..)
                .length(Length::Exact(promised));
            let (result, received) = deliver(driver, family, &send, &file, 10);
            let error = result.expect_err("more bytes were promised");
            assert_eq!(error.kind(), ErrorKind::SourceTooShort { promised });
            assert_eq!(error.report().by(mechanism), 99_990);
            assert_eq!(received, 99_990);
            assert_eq!(
                std::io::Error::from(error).kind(),
                std::io::ErrorKind::UnexpectedEof
            );
        }
    });
}

/// A sparse file of 4 GiB + 3 MiB. It is a hole except for some bytes around each boundary.
static SPARSE_FILE: LazyLock<File> = LazyLock::new(|| {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4 * GIB + 3 * MIB).unwrap();
    let bytes = pattern(10_001);
    for at in [0, 1, GIB, MAX_CALL_BYTES, 2 * GIB, 4 * GIB] {
        let start = u64::saturating_sub(at, 5_000);
        file.write_all_at(&bytes, start).unwrap();
    }
    file
});

/// Sends 2 GiB - 1 and 2 GiB + 1 bytes of the sparse file, and compares every byte.
fn check_two_gib(mechanism: Mechanism) {
    let sizes = [2 * GIB - 1, 2 * GIB + 1];
    for (family, size) in FAMILIES.into_iter().flat_map(|f| sizes.map(|s| (f, s))) {
        // Send each size with only one of the drivers. Using both would take twice as long, and is
        // unlikely to find more errors.
        let nth = usize::from((family == Family::Tcp) == (size < 2 * GIB));
        let driver = DRIVERS[nth % DRIVERS.len()];
        check_send((mechanism, family, driver), &SPARSE_FILE, 0, size, false);
    }
}

#[test]
fn two_gib_arrive_with_sendfile() {
    check_two_gib(Mechanism::Sendfile);
}

#[test]
fn two_gib_arrive_with_splice() {
    check_two_gib(Mechanism::Splice);
}

#[test]
fn two_gib_arrive_with_mmap_write() {
    check_two_gib(Mechanism::MmapWrite);
}

#[test]
fn two_gib_arrive_with_copy() {
    check_two_gib(Mechanism::Copy);
}

#[test]
fn ranges_across_and_past_4_gib_arrive() {
    for_each_combination(|mechanism, family, driver| {
        for (offset, len) in [
            (4 * GIB - MIB - 1, 2 * MIB + 2),
            (4 * GIB, 1),
            (4 * GIB - 1, 2),
            (4 * GIB + 4_097, MIB),
        ] {
            check_send(
                (mechanism, family, driver),
                &SPARSE_FILE,
                offset,
                len,
                false,
            );
        }
        check_send(
            (mechanism, family, driver),
            &SPARSE_FILE,
            4 * GIB + 1,
            3 * MIB - 1,
            true,
        );
    });
}

/// `uncopied::send_file` must send all bytes with `sendfile`, and must not change the file
/// position.
#[test]
fn send_file_uses_sendfile_and_keeps_the_file_position() {
    use std::io::Seek;

    let mut file = pattern_file(500_000);
    file.seek(std::io::SeekFrom::Start(77)).unwrap();
    for family in FAMILIES {
        let (socket, mut peer) = crate::harness::socket_pair(family);
        let report = std::thread::scope(|scope| {
            let file = &file;
            let receiver = scope.spawn(move || crate::harness::receive(&mut peer, file, 100));
            let report = uncopied::send_file(file, 100.., &socket).unwrap();
            drop(socket);
            assert_eq!(receiver.join().unwrap(), 499_900);
            report
        });
        assert_all_sent_by(&report, Mechanism::Sendfile, 499_900, "send_file");
    }
    assert_eq!(file.stream_position().unwrap(), 77);
}
