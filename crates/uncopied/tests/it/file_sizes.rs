//! Every mechanism, socket and driver at the sizes around every boundary.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use uncopied::policy::Length;
use uncopied::{ErrorKind, Mechanism, SendFile};

use crate::harness::{DRIVERS, Driver, FAMILIES, Family, assert_all_by, content, deliver, file_of};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The most that one call moves.
const CALL: u64 = 0x7fff_f000;

fn each(mut run: impl FnMut(Mechanism, Family, Driver)) {
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for family in FAMILIES {
            for &driver in DRIVERS {
                run(mechanism, family, driver);
            }
        }
    }
}

/// Sends `len` bytes from `offset` on, exactly or until the end, by this mechanism alone.
fn check(
    (mechanism, family, driver): (Mechanism, Family, Driver),
    file: &File,
    offset: u64,
    len: u64,
    until_eof: bool,
) {
    let what = format!("{mechanism} to {family:?} by {driver:?}: {len} bytes from {offset}");
    let forced = [mechanism];
    let send = SendFile::new(file).force_mechanisms(&forced);
    let send = if until_eof {
        send.range(offset..)
    } else {
        send.range(offset..offset + len)
    };
    let (result, received) = deliver(driver, family, &send, file, offset);
    let report = result.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(received, len, "{what}");
    assert_all_by(&report, mechanism, len, &what);
}

#[test]
fn sizes_around_every_boundary() {
    let page = rustix::param::page_size() as u64;
    let boundaries = [page, 64 << 10, 2 * MIB];
    let around = boundaries.map(|size| [size - 1, size, size + 1]);
    for size in [0, 1].into_iter().chain(around.into_iter().flatten()) {
        let file = file_of(size as usize);
        each(|mechanism, family, driver| {
            let how = (mechanism, family, driver);
            check(how, &file, 0, size, true);
            check(how, &file, 0, size, false);
        });
    }
}

#[test]
fn odd_offsets_and_inner_ranges() {
    let page = rustix::param::page_size() as u64;
    let size = 3 * MIB + 17;
    let file = file_of(size as usize);
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
    each(|mechanism, family, driver| {
        for (offset, len) in ranges {
            check((mechanism, family, driver), &file, offset, len, false);
        }
        check((mechanism, family, driver), &file, 777, size - 777, true);
    });
}

#[test]
fn an_offset_past_the_end_finds_no_byte() {
    let file = file_of(1000);
    each(|mechanism, family, driver| {
        for offset in [1000, 1001, 1 << 40, i64::MAX as u64, u64::MAX] {
            let forced = [mechanism];
            let send = SendFile::new(&file)
                .force_mechanisms(&forced)
                .range(offset..);
            let (result, received) = deliver(driver, family, &send, &file, offset);
            assert_all_by(&result.unwrap(), mechanism, 0, "until the end");
            assert_eq!(received, 0);

            let owed = send.length(Length::Exact(1));
            let (result, received) = deliver(driver, family, &owed, &file, offset);
            let error = result.expect_err("a byte is owed");
            assert_eq!(error.kind(), ErrorKind::SourceTooShort { promised: 1 });
            assert_eq!((error.moved(), received), (0, 0));
        }
    });
}

#[test]
fn more_than_the_file_has_is_an_error_with_the_count() {
    let file = file_of(100_000);
    each(|mechanism, family, driver| {
        for promised in [99_991, u64::MAX - 10, u64::MAX] {
            let forced = [mechanism];
            let send = SendFile::new(&file)
                .force_mechanisms(&forced)
                .range(10..)
                .length(Length::Exact(promised));
            let (result, received) = deliver(driver, family, &send, &file, 10);
            let error = result.expect_err("bytes are owed");
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

/// 4 GiB and some, nearly all of it a hole, with bytes wherever something could go wrong.
static SPARSE: LazyLock<File> = LazyLock::new(|| {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4 * GIB + 3 * MIB).unwrap();
    let mark = content(10_001);
    for at in [0, 1, GIB, CALL, 2 * GIB, 4 * GIB] {
        let start = u64::saturating_sub(at, 5_000);
        file.write_all_at(&mark, start).unwrap();
    }
    file
});

/// 2 GiB less one and 2 GiB and one, hashed by nothing less than a comparison of every byte.
fn two_gib(mechanism: Mechanism) {
    let sizes = [2 * GIB - 1, 2 * GIB + 1];
    for (family, size) in FAMILIES.into_iter().flat_map(|f| sizes.map(|s| (f, s))) {
        // Both drivers with each size and each family would say no more and take twice as long.
        let nth = usize::from((family == Family::Tcp) == (size < 2 * GIB));
        let driver = DRIVERS[nth % DRIVERS.len()];
        check((mechanism, family, driver), &SPARSE, 0, size, false);
    }
}

#[test]
fn two_gib_by_sendfile() {
    two_gib(Mechanism::Sendfile);
}

#[test]
fn two_gib_by_splice() {
    two_gib(Mechanism::Splice);
}

#[test]
fn two_gib_by_mmap_write() {
    two_gib(Mechanism::MmapWrite);
}

#[test]
fn two_gib_by_copy() {
    two_gib(Mechanism::Copy);
}

#[test]
fn ranges_across_and_past_4_gib() {
    each(|mechanism, family, driver| {
        for (offset, len) in [
            (4 * GIB - MIB - 1, 2 * MIB + 2),
            (4 * GIB, 1),
            (4 * GIB - 1, 2),
            (4 * GIB + 4_097, MIB),
        ] {
            check((mechanism, family, driver), &SPARSE, offset, len, false);
        }
        check(
            (mechanism, family, driver),
            &SPARSE,
            4 * GIB + 1,
            3 * MIB - 1,
            true,
        );
    });
}

/// Without forcing, everything goes by sendfile, and the file's own position is not touched.
#[test]
fn the_paved_path() {
    use std::io::Seek;

    let mut file = file_of(500_000);
    file.seek(std::io::SeekFrom::Start(77)).unwrap();
    for family in FAMILIES {
        let (socket, mut peer) = crate::harness::pair(family);
        let report = std::thread::scope(|scope| {
            let file = &file;
            let receiver = scope.spawn(move || crate::harness::receive(&mut peer, file, 100));
            let report = uncopied::send_file(file, 100.., &socket).unwrap();
            drop(socket);
            assert_eq!(receiver.join().unwrap(), 499_900);
            report
        });
        assert_all_by(&report, Mechanism::Sendfile, 499_900, "the paved path");
    }
    assert_eq!(file.stream_position().unwrap(), 77);
}
