//! The thresholds of plans: those of the environment, those that a program sets, and files that
//! cannot be used.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;

use uncopied::arena::{Memory, PageBuffer, Region};
use uncopied::policy::Length;
use uncopied::relay;
use uncopied::{Mechanism, ReceiveFile, Report, SendFile, Sender, Tuning, TuningError};

use crate::harness::{
    Family, expect_bytes, in_child, pattern, pattern_file, receive, sending, socket_pair,
};

const MIB: usize = 1 << 20;

/// Returns the default thresholds, except for these.
fn tuning(changes: &[(&str, u64)]) -> Tuning {
    let change = |tuning: Tuning, (key, bytes): &(&str, u64)| tuning.with(key, *bytes).unwrap();
    changes.iter().fold(Tuning::default(), change)
}

/// Returns the only mechanism of a report.
fn only_mechanism(report: &Report) -> Mechanism {
    let mut used = Mechanism::ALL.into_iter().filter(|it| report.by(*it) > 0);
    let mechanism = used.next().unwrap();
    assert_eq!(used.next(), None, "{report}");
    mechanism
}

fn sends_file(bytes: u64) -> Mechanism {
    let file = pattern_file(bytes as usize);
    let (socket, mut peer) = socket_pair(Family::Tcp);
    let report = SendFile::new(&file).range(..bytes).to(&socket).unwrap();
    drop(socket);
    assert_eq!(receive(&mut peer, &file, 0), bytes);
    only_mechanism(&report)
}

fn receives_file(bytes: u64) -> Mechanism {
    let (socket, peer) = socket_pair(Family::Tcp);
    let expected = pattern(bytes as usize);
    let sender = sending(peer, expected.clone());
    let file = tempfile::NamedTempFile::new().unwrap();
    let receive = ReceiveFile::new(file.as_file()).length(Length::Exact(bytes));
    let report = receive.from(&socket).unwrap();
    sender.join().unwrap();
    assert_eq!(fs::read(file.path()).unwrap(), expected);
    only_mechanism(&report)
}

fn sends_memory(memory: impl Into<Memory>, bytes: usize) -> Mechanism {
    let (socket, mut peer) = socket_pair(Family::Tcp);
    let reader = thread::spawn(move || {
        let mut received = vec![0; bytes];
        peer.read_exact(&mut received).unwrap();
        received
    });
    let sent = Sender::new(socket).send(memory).unwrap();
    assert!(reader.join().unwrap() == pattern(bytes));
    only_mechanism(sent.report())
}

fn sends_pages(bytes: usize) -> Mechanism {
    let buffer = PageBuffer::copy_from_slice(&pattern(bytes)).unwrap();
    sends_memory(buffer.freeze_permanently(), bytes)
}

/// Returns `None` if this machine has no huge pages, without which every region is copied.
fn sends_region(bytes: usize) -> Option<Mechanism> {
    let (region, mut writer) = Region::new(bytes).unwrap();
    writer.copy_from_slice(&pattern(bytes));
    let is_protected = region.is_huge() && region.protection().is_ok();
    let mechanism = sends_memory(region.part(..), bytes);
    is_protected.then_some(mechanism)
}

/// Relays messages of this many bytes, one at a time, and returns what moved the last one.
fn relays_messages(bytes: usize) -> Mechanism {
    let (a, client) = socket_pair(Family::Tcp);
    let (b, mut server) = socket_pair(Family::Tcp);
    let relay = thread::spawn(move || relay::copy_bidirectional(&a, &b).unwrap());
    let mut client = TcpStream::from(OwnedFd::from(client));
    let message = pattern(bytes);
    for _ in 0..3 {
        client.write_all(&message).unwrap();
        expect_bytes(&mut server, &message);
    }
    drop((client, server));
    let report = relay.join().unwrap().a_to_b;
    assert_eq!(report.bytes(), 3 * bytes as u64, "{report}");
    // The first message goes by `copy`, because nothing is known of the stream.
    match report.by(Mechanism::Splice) {
        0 => Mechanism::Copy,
        spliced => {
            assert_eq!(spliced, 2 * bytes as u64, "{report}");
            Mechanism::Splice
        }
    }
}

// The thresholds are those of the whole process, so each test that changes them runs in a child.

#[test]
fn transfers_use_the_thresholds_that_a_program_sets() {
    use Mechanism::{Copy, Sendfile, Splice, Vmsplice};
    in_child(
        "tuning::transfers_use_the_thresholds_that_a_program_sets",
        |child| {
            child.env_remove("UNCOPIED_TUNING");
        },
        || {
            assert_eq!(Tuning::current(), Tuning::default());
            assert_eq!((sends_file(8191), sends_file(8192)), (Copy, Sendfile));
            assert_eq!(receives_file(1), Splice);
            assert_eq!((sends_pages(65_535), sends_pages(65_536)), (Copy, Vmsplice));
            assert_eq!(relays_messages(8000), Copy);
            assert!(sends_region(MIB).is_none_or(|it| it == Copy));
            assert!(sends_region(2 * MIB).is_none_or(|it| it == Vmsplice));

            let lower_and_higher = tuning(&[
                ("sendfile_min_bytes", 5000),
                ("vmsplice_min_bytes", 8192),
                ("region_min_bytes", MIB as u64),
                ("relay_splice_min_bytes", 1000),
                ("receive_file_splice_min_bytes", 6000),
            ]);
            lower_and_higher.set();
            assert_eq!(Tuning::current(), lower_and_higher);
            assert_eq!((sends_file(4999), sends_file(5000)), (Copy, Sendfile));
            assert_eq!((receives_file(5999), receives_file(6000)), (Copy, Splice));
            assert_eq!((sends_pages(8191), sends_pages(8192)), (Copy, Vmsplice));
            assert_eq!(
                (relays_messages(999), relays_messages(1000)),
                (Copy, Splice)
            );
            assert!(sends_region(MIB - 1).is_none_or(|it| it == Copy));
            assert!(sends_region(MIB).is_none_or(|it| it == Vmsplice));

            let never = Tuning::KEYS.map(|key| (key, Tuning::NEVER));
            tuning(&never).set();
            assert_eq!((sends_file(1 << 20), receives_file(1 << 20)), (Copy, Copy));
            assert_eq!((sends_pages(MIB), relays_messages(MIB)), (Copy, Copy));
            assert!(sends_region(4 * MIB).is_none_or(|it| it == Copy));
        },
    );
}

#[test]
fn the_environment_names_the_file_until_a_program_sets_thresholds() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let of_file = tuning(&[("vmsplice_min_bytes", Tuning::NEVER)]);
    fs::write(file.path(), of_file.to_string()).unwrap();
    in_child(
        "tuning::the_environment_names_the_file_until_a_program_sets_thresholds",
        |child| {
            child.env("UNCOPIED_TUNING", file.path());
        },
        || {
            assert_eq!(sends_pages(MIB), Mechanism::Copy);
            assert_eq!(Tuning::current(), of_file);
            assert_eq!(Tuning::from_environment().unwrap(), Some(of_file));
            Tuning::default().set();
            assert_eq!(sends_pages(MIB), Mechanism::Vmsplice);
            assert_eq!(Tuning::current(), Tuning::default());
        },
    );
}

/// The library has no place to report the error, so it uses the defaults.
#[test]
fn with_a_wrong_file_the_defaults_apply() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(
        file.path(),
        "vmsplice_min_bytes = never\nvmsplice = never\n",
    )
    .unwrap();
    in_child(
        "tuning::with_a_wrong_file_the_defaults_apply",
        |child| {
            child.env("UNCOPIED_TUNING", file.path());
        },
        || {
            assert_eq!(Tuning::current(), Tuning::default());
            assert_eq!(sends_pages(MIB), Mechanism::Vmsplice);
            let error = Tuning::from_environment().unwrap_err();
            assert!(
                matches!(error, TuningError::Line { line: 2, .. }),
                "{error}"
            );
        },
    );
}

#[test]
fn an_empty_variable_names_no_file() {
    in_child(
        "tuning::an_empty_variable_names_no_file",
        |child| {
            child.env("UNCOPIED_TUNING", "");
        },
        || {
            assert_eq!(Tuning::from_environment().unwrap(), None);
            assert_eq!(Tuning::current(), Tuning::default());
        },
    );
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_the_cause() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let long = [b"#".repeat(64 << 10), b"\n".to_vec()].concat();
    let just_short_enough = &long[..64 << 10];
    fs::write(path("short"), just_short_enough).unwrap();
    assert_eq!(Tuning::load(path("short")).unwrap(), Tuning::default());
    fs::write(path("long"), &long).unwrap();
    fs::write(path("binary"), b"region_min_bytes = \xff\n").unwrap();
    fs::write(path("key"), "# of this machine\n\nsplice = 1\n").unwrap();
    fs::write(path("number"), "region_min_bytes = 2M\n").unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let cases: [(&Path, &str); 9] = [
        (&path("absent"), "cannot read the tuning"),
        (&path("short/below"), "cannot read the tuning"),
        (directory.path(), "is not a regular file"),
        (&path("fifo"), "is not a regular file"),
        (Path::new("/dev/zero"), "is not a regular file"),
        (&path("long"), "is longer than 65536 bytes"),
        (&path("binary"), "is not text in UTF-8"),
        (&path("key"), ", line 3: \"splice\" is no threshold"),
        (&path("number"), ", line 1: \"2M\" is not a number of bytes"),
    ];
    for (path, words) in cases {
        let error = Tuning::load(path).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(words), "{words:?} is missing in {text}");
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        let has_source = std::error::Error::source(&error).is_some();
        assert_eq!(
            has_source,
            matches!(error, TuningError::Read { .. }),
            "{text}"
        );
    }
    let with_zero = std::ffi::OsStr::from_bytes(b"a\0b");
    assert!(matches!(
        Tuning::load(with_zero),
        Err(TuningError::Read { .. })
    ));
}
