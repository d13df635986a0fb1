//! The text, source and errno of an error, and which of them survive the conversion to an
//! `io::Error`.

use std::error::Error as _;
use std::io;

use uncopied::policy::Length;
use uncopied::{Errno, Error, ErrorKind, Mechanism, SendFile};

use crate::harness::{DRIVERS, Family, deliver, pattern_file, socket_pair};

fn error_of_closed_peer() -> Error {
    let file = pattern_file(10_000);
    let (socket, peer) = socket_pair(Family::Unix);
    drop(peer);
    let send = SendFile::new(&file).force_mechanisms(&[Mechanism::MmapWrite]);
    send.to(&socket).expect_err("closed")
}

#[test]
fn the_text_of_an_error_does_not_repeat_that_of_its_source() {
    let error = error_of_closed_peer();
    assert_eq!(
        error.to_string(),
        "the peer closed the connection after 0 bytes (mmap_write: send)"
    );
    let source = error.source().expect("the error of the call");
    assert_eq!(source.to_string(), "Broken pipe (os error 32)");
    assert!(source.source().is_none());
    assert_eq!(error.call(), Some("send"));
    assert_eq!(error.mechanism(), Some(Mechanism::MmapWrite));
}

#[test]
fn an_io_error_keeps_the_kind_and_the_errno() {
    let errno = Some(Errno::PIPE.raw_os_error());
    let error = error_of_closed_peer();
    assert_eq!(error.raw_os_error(), errno);

    let error = io::Error::from(error);
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    let source = error.source().expect("the error of the call");
    assert_eq!(source.to_string(), "Broken pipe (os error 32)");
    let inner = error.downcast::<Error>().expect("the error of the library");
    assert_eq!(inner.raw_os_error(), errno);
}

/// Sends a file of 100 bytes and returns the kind of the error. Asserts that nothing was sent.
fn kind_of_error(send: &SendFile<'_>) -> ErrorKind {
    let file = pattern_file(100);
    let mut kinds = DRIVERS.iter().map(|&driver| {
        let (result, received) = deliver(driver, Family::Tcp, send, &file, 0);
        let error = result.expect_err("an invalid range");
        assert_eq!((error.moved(), received), (0, 0));
        assert_eq!((error.call(), error.mechanism()), (None, None));
        assert!(error.source().is_none());
        let kind = error.kind();
        assert_eq!(
            io::Error::from(error).kind(),
            io::ErrorKind::InvalidInput,
            "{kind:?}"
        );
        kind
    });
    let kind = kinds.next().expect("a driver");
    assert!(kinds.all(|other| other == kind));
    kind
}

#[test]
#[allow(clippy::reversed_empty_ranges)]
fn a_range_that_ends_before_it_starts_is_an_error() {
    let file = pattern_file(100);
    let (start, end) = (9, 7);
    let expected = ErrorKind::RangeEndsBeforeStart { start, end };
    let send = SendFile::new(&file).range(9..7);
    assert_eq!(kind_of_error(&send), expected);
    let send = SendFile::new(&file).range(9..=6);
    assert_eq!(kind_of_error(&send), expected);
    // A length of 0 must not make such a range valid.
    let send = SendFile::new(&file).range(9..7).length(Length::Exact(0));
    assert_eq!(kind_of_error(&send), expected);

    let (socket, _peer) = socket_pair(Family::Unix);
    let error = uncopied::send_file(&file, 9..7, &socket).unwrap_err();
    assert_eq!(error.to_string(), "the range 9..7 ends before it starts");
    let report = uncopied::send_file(&file, 7..7, &socket).unwrap();
    assert_eq!(report.bytes(), 0, "an empty range is valid");
}

#[test]
fn a_length_that_contradicts_the_range_is_an_error() {
    let file = pattern_file(100);
    let send = SendFile::new(&file).range(10..30);
    let range = 20;
    for length in [Length::Exact(19), Length::Exact(21), Length::UntilEof] {
        let expected = ErrorKind::LengthContradictsRange { range, length };
        assert_eq!(kind_of_error(&send.clone().length(length)), expected);
        // The order of the two calls makes no difference.
        let length_first = SendFile::new(&file).length(length).range(10..30);
        assert_eq!(kind_of_error(&length_first), expected);
    }

    let (socket, _peer) = socket_pair(Family::Unix);
    let same = send.length(Length::Exact(20)).to(&socket).unwrap();
    assert_eq!(same.bytes(), 20);
    let open = SendFile::new(&file).range(10..).length(Length::Exact(20));
    assert_eq!(open.to(&socket).unwrap().bytes(), 20);
}
