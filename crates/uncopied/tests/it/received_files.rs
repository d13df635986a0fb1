//! Receiving into files, pipes and devices: sizes around every boundary, the end of the stream,
//! what stays in the socket, and sinks that are special.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use proptest::prelude::*;
use rustix::fs::{FsWord, statfs};
use uncopied::policy::Length;
use uncopied::{ErrorKind, Mechanism, ReceiveFile};

use crate::harness::{
    DRIVERS, FAMILIES, Family, TO_FILES, expect_bytes, expect_eof, for_each_way_to_files, in_child,
    pattern, pattern_file, receive_into, sending, skip, socket_pair,
};

const MIB: usize = 1 << 20;
const GIB: u64 = 1 << 30;

/// The magic numbers of `statfs(2)`.
const EXT4: FsWord = 0xef53;
const TMPFS: FsWord = 0x0102_1994;

/// Returns a new file on a file system of this type, if the machine has one where these tests look.
fn file_on(magic: FsWord) -> Option<File> {
    let current = std::env::current_dir().unwrap();
    let temporary = std::env::temp_dir();
    let folders = [current.as_path(), &temporary, Path::new("/dev/shm")];
    let is_wanted = |folder: &&&Path| statfs(**folder).is_ok_and(|it| it.f_type == magic);
    let folder = folders.iter().find(is_wanted)?;
    Some(tempfile::tempfile_in(folder).unwrap())
}

fn contents(file: &File, at: u64) -> Vec<u8> {
    let len = file.metadata().unwrap().len().saturating_sub(at);
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes
}

/// Receives streams of sizes around every boundary into files on a file system of this type.
fn check_sizes(magic: FsWord, test: &str) {
    if file_on(magic).is_none() {
        let why = "needs such a file system here, in the temporary folder, or in /dev/shm";
        return skip(&format!("received_files::{test}"), why);
    }
    let page = rustix::param::page_size();
    let boundaries = [page, 64 << 10, 256 << 10, MIB, 2 * MIB];
    let around = boundaries.map(|size| [size - 1, size, size + 1]);
    for size in [0, 1].into_iter().chain(around.into_iter().flatten()) {
        let bytes = pattern(size);
        for_each_way_to_files(|mechanism, family, driver| {
            let lengths = [Length::UntilEof, Length::Exact(size as u64)];
            for (offset, length) in [0, 777].into_iter().zip(lengths) {
                let case = format!("{size} bytes by {mechanism}, {family:?}, {driver:?}");
                let file = file_on(magic).unwrap();
                let (socket, peer) = socket_pair(family);
                let peer = sending(peer, bytes.clone());
                let receive = ReceiveFile::new(&file)
                    .at(offset)
                    .length(length)
                    .force_mechanisms(&[mechanism]);
                let report = receive_into(driver, family, socket, &receive).expect(&case);
                peer.join().unwrap();
                assert_eq!(report.by(mechanism), size as u64, "{case}: {report}");
                assert_eq!(report.bytes(), size as u64, "{case}: {report}");
                assert_eq!(report.copied_bytes(), size as u64, "files copy: {report}");
                assert!(report.fallbacks().is_empty(), "{case}: {report}");
                assert!(contents(&file, offset) == bytes, "{case}");
            }
        });
    }
}

#[test]
fn streams_of_sizes_around_every_boundary_arrive_on_ext4() {
    check_sizes(
        EXT4,
        "streams_of_sizes_around_every_boundary_arrive_on_ext4",
    );
}

#[test]
fn streams_of_sizes_around_every_boundary_arrive_on_tmpfs() {
    check_sizes(
        TMPFS,
        "streams_of_sizes_around_every_boundary_arrive_on_tmpfs",
    );
}

/// Blocks bypass the page cache, and the bytes around them do not.
#[test]
fn a_file_with_o_direct_gets_every_byte() {
    let name = "received_files::a_file_with_o_direct_gets_every_byte";
    let page = rustix::param::page_size();
    for offset in [0, 1, page - 1, page, 3 * page + 777] {
        for size in [1, page - 1, page, 2 * page + 1, 300_000, MIB] {
            for_each_way_to_files(|mechanism, family, driver| {
                let case = format!("{size} at {offset} by {mechanism}, {family:?}, {driver:?}");
                let file = tempfile::NamedTempFile::new_in(".").unwrap();
                let around = vec![b'o'; offset + size + 100];
                std::fs::write(file.path(), &around).unwrap();
                let mut options = OpenOptions::new();
                let options = options.write(true).custom_flags(libc::O_DIRECT);
                let Ok(direct) = options.open(file.path()) else {
                    return skip(name, "needs a file system with O_DIRECT");
                };
                let (socket, peer) = socket_pair(family);
                let peer = sending(peer, pattern(size));
                let receive = ReceiveFile::new(&direct)
                    .at(offset as u64)
                    .length(Length::Exact(size as u64))
                    .force_mechanisms(&[mechanism, Mechanism::Copy]);
                let report = receive_into(driver, family, socket, &receive).expect(&case);
                peer.join().unwrap();
                assert_eq!(report.bytes(), size as u64, "{case}: {report}");
                let written = std::fs::read(file.path()).unwrap();
                assert_eq!(written.len(), around.len(), "{case}");
                assert!(written[offset..][..size] == pattern(size), "{case}");
                let others = written[..offset].iter().chain(&written[offset + size..]);
                assert!(others.copied().all(|byte| byte == b'o'), "{case}");
            });
        }
    }
}

#[test]
fn offsets_across_and_past_4_gib_are_written_to() {
    let bytes = pattern(2 * MIB + 2);
    for_each_way_to_files(|mechanism, family, driver| {
        for offset in [4 * GIB - MIB as u64 - 1, 4 * GIB, 5 * GIB + 1] {
            let file = tempfile::tempfile().unwrap();
            let (socket, peer) = socket_pair(family);
            let peer = sending(peer, bytes.clone());
            let receive = ReceiveFile::new(&file).at(offset);
            let receive = receive.force_mechanisms(&[mechanism]);
            receive_into(driver, family, socket, &receive).unwrap();
            peer.join().unwrap();
            assert!(contents(&file, offset) == bytes, "{mechanism} at {offset}");
        }
    });
}

/// A system call moves at most 2 GiB - 4 KiB.
#[test]
fn more_than_2_gib_are_discarded() {
    for &driver in DRIVERS {
        let size = 2 * GIB + 1;
        let sparse = tempfile::tempfile().unwrap();
        sparse.set_len(size).unwrap();
        let (socket, peer) = socket_pair(Family::Tcp);
        let peer = thread::spawn(move || {
            let peer = OwnedFd::from(peer);
            uncopied::send_file(&sparse, .., &peer).unwrap();
        });
        let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
        let receive = ReceiveFile::new(&null);
        let report = receive_into(driver, Family::Tcp, socket, &receive).unwrap();
        peer.join().unwrap();
        assert_eq!(report.by(Mechanism::Discard), size, "{report}");
        assert_eq!(report.zero_copy_bytes(), size, "{report}");
    }
}

/// Parts of a file can be received at the same time. The file's own position stays as it is.
#[test]
fn several_transfers_fill_a_file() {
    use std::io::Seek;
    let bytes = pattern(8 * MIB);
    let mut file = tempfile::tempfile().unwrap();
    file.seek(std::io::SeekFrom::Start(77)).unwrap();
    thread::scope(|scope| {
        for (nth, part) in bytes.chunks(MIB + 1).enumerate() {
            let (socket, peer) = socket_pair(Family::Tcp);
            let file = &file;
            let mechanism = TO_FILES[nth % 2];
            let driver = DRIVERS[nth / 2 % DRIVERS.len()];
            scope.spawn(move || {
                let peer = sending(peer, part.to_vec());
                let receive = ReceiveFile::new(file)
                    .at((nth * (MIB + 1)) as u64)
                    .length(Length::Exact(part.len() as u64))
                    .reserve(true)
                    .force_mechanisms(&[mechanism]);
                receive_into(driver, Family::Tcp, socket, &receive).unwrap();
                peer.join().unwrap();
            });
        }
    });
    assert!(contents(&file, 0) == bytes);
    assert_eq!(file.stream_position().unwrap(), 77);
}

#[test]
fn receive_file_keeps_what_follows_in_the_socket() {
    let (socket, mut peer) = socket_pair(Family::Tcp);
    peer.write_all(&pattern(150_000)).unwrap();
    rustix::net::shutdown(&peer, rustix::net::Shutdown::Write).unwrap();
    let file = pattern_file(200_000);
    let length = Length::Exact(100_000);
    let report = uncopied::receive_file(&socket, &file, length).unwrap();
    assert_eq!(report.by(Mechanism::Splice), 100_000, "{report}");
    let mut socket = File::from(socket);
    expect_bytes(&mut socket, &pattern(150_000)[100_000..]);
    expect_eof(&mut socket);
    assert_eq!(
        file.metadata().unwrap().len(),
        200_000,
        "it is not truncated"
    );
}

#[test]
fn a_peer_that_ends_the_stream_early_is_an_error_that_counts_the_bytes() {
    for_each_way_to_files(|mechanism, family, driver| {
        let file = tempfile::tempfile().unwrap();
        let (socket, peer) = socket_pair(family);
        let peer = sending(peer, pattern(100_000));
        let promised = 100_001;
        let receive = ReceiveFile::new(&file)
            .length(Length::Exact(promised))
            .force_mechanisms(&[mechanism]);
        let error = receive_into(driver, family, socket, &receive).unwrap_err();
        peer.join().unwrap();
        assert_eq!(error.kind(), ErrorKind::SourceTooShort { promised });
        assert_eq!(error.moved(), 100_000);
        let text = "the peer ended the stream after 100000 of 100001 bytes";
        assert!(error.to_string().starts_with(text), "{error}");
        assert!(contents(&file, 0) == pattern(100_000));
    });
}

#[test]
fn a_length_of_zero_waits_for_nothing() {
    for_each_way_to_files(|mechanism, family, driver| {
        let file = tempfile::tempfile().unwrap();
        let (socket, _silent_peer) = socket_pair(family);
        let receive = ReceiveFile::new(&file)
            .length(Length::Exact(0))
            .reserve(true)
            .force_mechanisms(&[mechanism]);
        let report = receive_into(driver, family, socket, &receive).unwrap();
        assert_eq!(report.bytes(), 0);
    });
}

/// The plan splices into a pipe. The pipe's reader is slower than the peer, and the pipe is full
/// most of the time.
#[test]
fn a_pipe_is_filled_as_fast_as_it_is_read() {
    for family in FAMILIES {
        for &driver in DRIVERS {
            for forced in [&[][..], &[Mechanism::Copy]] {
                let bytes = pattern(3 * MIB + 17);
                let (reader, writer) = std::io::pipe().unwrap();
                rustix::io::ioctl_fionbio(&writer, true).unwrap();
                let (socket, peer) = socket_pair(family);
                let peer = sending(peer, bytes.clone());
                let reading = thread::spawn(move || {
                    let (mut reader, mut read) = (reader, Vec::new());
                    while reader.by_ref().take(10_000).read_to_end(&mut read).unwrap() > 0 {
                        thread::yield_now();
                    }
                    read
                });
                let receive = ReceiveFile::new(&writer).force_mechanisms(forced);
                let report = receive_into(driver, family, socket, &receive).unwrap();
                peer.join().unwrap();
                drop(writer);
                assert!(reading.join().unwrap() == bytes, "{family:?} {driver:?}");
                let mechanism = *forced.first().unwrap_or(&Mechanism::Splice);
                assert_eq!(report.by(mechanism), bytes.len() as u64, "{report}");
                let is_spliced = mechanism == Mechanism::Splice;
                assert_eq!(report.copied_bytes() == 0, is_spliced, "{report}");
            }
        }
    }
}

/// What a terminal or a redirection to `>>` does: the file has no use for offsets.
#[test]
fn a_file_that_appends_is_appended_to() {
    for_each_way_to_files(|mechanism, family, driver| {
        let path = tempfile::NamedTempFile::new().unwrap();
        path.as_file().write_all_at(b"before", 0).unwrap();
        let appending = OpenOptions::new().append(true).open(path.path()).unwrap();
        let (socket, peer) = socket_pair(family);
        let peer = sending(peer, pattern(300_000));
        let receive = ReceiveFile::new(&appending);
        let receive = receive.force_mechanisms(&[mechanism, Mechanism::Copy]);
        let report = receive_into(driver, family, socket, &receive).unwrap();
        peer.join().unwrap();
        // `splice` refuses such a file, when it already holds bytes of the socket.
        assert_eq!(report.by(Mechanism::Copy), 300_000, "{report}");
        assert!(
            contents(path.as_file(), 6) == pattern(300_000),
            "{mechanism}"
        );
    });
}

#[test]
fn an_offset_in_a_sink_without_offsets_is_an_error() {
    let path = tempfile::NamedTempFile::new().unwrap();
    let appending = OpenOptions::new().append(true).open(path.path()).unwrap();
    let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
    let (_reader, writer) = std::io::pipe().unwrap();
    for sink in [appending.as_fd(), null.as_fd(), writer.as_fd()] {
        let (socket, _peer) = socket_pair(Family::Unix);
        let error = ReceiveFile::new(&sink).at(0).from(&socket).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SinkNotSeekable, "{error}");
        let kind = std::io::Error::from(error).kind();
        assert_eq!(kind, std::io::ErrorKind::InvalidInput);
    }
}

#[test]
fn a_source_that_is_not_a_stream_socket_is_an_error() {
    let file = tempfile::tempfile().unwrap();
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for source in [
        OwnedFd::from(datagrams),
        OwnedFd::from(tempfile::tempfile().unwrap()),
    ] {
        let error = ReceiveFile::new(&file).from(&source).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotAStreamSocket, "{error}");
    }
}

/// `discard` needs TCP, and `/dev/null` itself.
#[test]
fn discard_is_refused_elsewhere() {
    let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
    let read_only = File::open("/dev/null").unwrap();
    let zero = OpenOptions::new().write(true).open("/dev/zero").unwrap();
    let sinks = [
        (&null, Family::Unix),
        (&read_only, Family::Tcp),
        (&zero, Family::Tcp),
    ];
    for (sink, family) in sinks {
        for &driver in DRIVERS {
            let (socket, peer) = socket_pair(family);
            let peer = sending(peer, pattern(1000));
            let receive = ReceiveFile::new(sink).force_mechanisms(&[Mechanism::Discard]);
            let error = receive_into(driver, family, socket, &receive).unwrap_err();
            peer.join().unwrap();
            assert_eq!((error.kind(), error.moved()), (ErrorKind::Unsupported, 0));
        }
    }
    // A Unix socket is spliced to `/dev/null` instead.
    let (socket, peer) = socket_pair(Family::Unix);
    let peer = sending(peer, pattern(100_000));
    let report = uncopied::receive_file(&socket, &null, Length::UntilEof).unwrap();
    peer.join().unwrap();
    assert_eq!(report.by(Mechanism::Splice), 100_000, "{report}");
    assert_eq!(report.copied_bytes(), 0, "{report}");
}

/// `splice` does not pass over urgent data, and reports it as if the socket were empty.
#[test]
fn urgent_data_stops_no_mechanism() {
    for mechanism in Mechanism::SOCKET_TO_FILE {
        for &driver in DRIVERS {
            let (socket, mut peer) = socket_pair(Family::Tcp);
            // Everything has arrived before it is received.
            {
                // If there were a second urgent byte, the first would be received like others.
                let (before, after) = (&pattern(40_000)[..15_000], &pattern(40_000)[15_000..]);
                peer.write_all(before).unwrap();
                let urgent = rustix::net::SendFlags::OOB;
                rustix::net::send(&peer, b"!", urgent).unwrap();
                peer.write_all(after).unwrap();
            }
            drop(peer);
            let file = tempfile::tempfile().unwrap();
            let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
            let sink = match mechanism {
                Mechanism::Discard => &null,
                _ => &file,
            };
            let receive = ReceiveFile::new(sink).force_mechanisms(&[mechanism]);
            let report = receive_into(driver, Family::Tcp, socket, &receive).unwrap();
            assert_eq!(report.bytes(), 40_000, "{mechanism} {driver:?}: {report}");
            let has_copied = !report.fallbacks().is_empty();
            assert_eq!(has_copied, mechanism == Mechanism::Splice, "{report}");
            if mechanism != Mechanism::Discard {
                assert!(
                    contents(&file, 0) == pattern(40_000),
                    "{mechanism} {driver:?}"
                );
            }
        }
    }
}

#[test]
fn switching_zero_copy_receiving_off_copies_every_byte() {
    in_child(
        "received_files::switching_zero_copy_receiving_off_copies_every_byte",
        |child| {
            child.env("UNCOPIED_RECEIVE", "off");
        },
        || {
            for &driver in DRIVERS {
                for is_on in [false, true] {
                    uncopied::set_zero_copy_receive(is_on);
                    let (socket, peer) = socket_pair(Family::Tcp);
                    let peer = sending(peer, pattern(100_000));
                    let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
                    let receive = ReceiveFile::new(&null);
                    let receive = receive.force_mechanisms(&[Mechanism::Splice]);
                    let report = receive_into(driver, Family::Tcp, socket, &receive).unwrap();
                    peer.join().unwrap();
                    assert_eq!(report.by(Mechanism::Copy) == 100_000, !is_on, "{report}");
                    assert_eq!(report.switched_off(), !is_on, "{report}");
                    assert_eq!(
                        report.to_string().contains("receiving is switched off"),
                        !is_on
                    );
                }
            }
        },
    );
}

#[test]
fn force_copy_overrides_forced_mechanisms() {
    let (socket, peer) = socket_pair(Family::Tcp);
    let peer = sending(peer, pattern(100_000));
    let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
    let receive = ReceiveFile::new(&null).force_mechanisms(&[Mechanism::Discard]);
    let report = receive.force_copy().from(&socket).unwrap();
    peer.join().unwrap();
    assert_eq!(report.by(Mechanism::Copy), 100_000, "{report}");
    assert!(!report.switched_off());
}

/// A socket that has been made non-blocking is waited for with `poll(2)`.
#[test]
fn blocking_code_receives_from_a_socket_that_does_not_block() {
    for family in FAMILIES {
        for mechanism in TO_FILES {
            let (socket, mut peer) = socket_pair(family);
            crate::harness::set_nonblocking(&socket);
            let peer = thread::spawn(move || {
                for part in pattern(100_000).chunks(7_001) {
                    peer.write_all(part).unwrap();
                    thread::yield_now();
                }
            });
            let file = tempfile::tempfile().unwrap();
            let receive = ReceiveFile::new(&file).force_mechanisms(&[mechanism]);
            assert_eq!(receive.from(&socket).unwrap().by(mechanism), 100_000);
            peer.join().unwrap();
            assert!(contents(&file, 0) == pattern(100_000));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn streams_sent_in_random_pieces_arrive(
        pieces in prop::collection::vec(0_usize..90_000, 0..12),
        mechanism in prop::sample::select(&TO_FILES[..]),
        family in prop::sample::select(&FAMILIES[..]),
        driver in prop::sample::select(DRIVERS),
        offset in 0_u64..100_000,
        extra in 0_usize..2,
        pauses in any::<bool>(),
    ) {
        let total: usize = pieces.iter().sum();
        let bytes = pattern(total + extra);
        let (socket, mut peer) = socket_pair(family);
        peer_sends(&mut peer, &bytes, &pieces, pauses, || {
            let file = tempfile::tempfile().unwrap();
            let receive = ReceiveFile::new(&file)
                .at(offset)
                .length(Length::Exact(total as u64))
                .force_mechanisms(&[mechanism]);
            let report = receive_into(driver, family, socket, &receive).unwrap();
            assert_eq!(report.by(mechanism), total as u64);
            assert!(contents(&file, offset)[..] == bytes[..total]);
        });
    }
}

/// Sends the bytes in pieces of these lengths, and then the rest, while `receive` runs.
fn peer_sends(
    peer: &mut File,
    bytes: &[u8],
    pieces: &[usize],
    pauses: bool,
    receive: impl FnOnce(),
) {
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut rest = bytes;
            for &piece in pieces {
                let (now, later) = rest.split_at(piece);
                peer.write_all(now).unwrap();
                rest = later;
                if pauses {
                    thread::yield_now();
                }
            }
            // The receiver may have closed the connection.
            let _ = peer.write_all(rest);
        });
        receive();
    });
}
