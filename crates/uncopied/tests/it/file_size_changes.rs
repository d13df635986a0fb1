//! Files that shrink or grow while they are sent.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use uncopied::policy::Length;
use uncopied::{ErrorKind, Mechanism, SendFile};

use crate::harness::{
    DRIVERS, Driver, FAMILIES, Family, pattern, pattern_file, send, small_buffer_pair,
};

/// The size of the test file: more than a pipe and the socket buffers hold together, so that the
/// file changes before all of it has been sent.
const FILE_BYTES: usize = 4 << 20;

/// Sends the file. The peer first reads a few bytes, then calls `change_file`, and then reads the
/// rest. Returns the result of the send, and the bytes that arrived.
fn send_while_changing(
    (mechanism, family, driver): (Mechanism, Family, Driver),
    file: &File,
    length: Length,
    change_file: impl FnOnce() + Send,
) -> (Result<uncopied::Report, uncopied::Error>, Vec<u8>) {
    let (socket, mut peer): (OwnedFd, File) = small_buffer_pair(family);
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let mut received = vec![0; 1000];
            peer.read_exact(&mut received).unwrap();
            change_file();
            peer.read_to_end(&mut received).unwrap();
            received
        });
        let forced = [mechanism];
        let send_file = SendFile::new(file).force_mechanisms(&forced).length(length);
        let result = send(driver, family, socket, &send_file);
        (result, receiver.join().unwrap())
    })
}

/// If the file turns out to be shorter than the promised length, the send must fail with an error
/// that counts the bytes sent. Fails if `Transfer::ended` reports success for an exact length.
#[test]
fn a_file_that_shrinks_while_it_is_sent_is_an_error() {
    let expected = pattern(FILE_BYTES);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for family in FAMILIES {
            for &driver in DRIVERS {
                // Truncate in the middle of a page: first in a page that has already been sent,
                // then in a page that has not.
                for new_size in [1, FILE_BYTES as u64 / 2 + 11] {
                    let case =
                        format!("{mechanism} {family:?} {driver:?}, truncated to {new_size}");
                    let file = pattern_file(FILE_BYTES);
                    let promised = FILE_BYTES as u64;
                    let combination = (mechanism, family, driver);
                    let length = Length::Exact(promised);
                    let (result, received) =
                        send_while_changing(combination, &file, length, || {
                            file.set_len(new_size).unwrap();
                        });
                    let error = result.expect_err(&case);
                    assert_eq!(
                        error.kind(),
                        ErrorKind::SourceTooShort { promised },
                        "{case}"
                    );
                    assert_eq!(error.moved(), received.len() as u64, "{case}");
                    assert!(error.moved() < promised, "{case}");
                    // Check only the bytes before the new end. The truncation zeroes the rest of
                    // the last page, and the bytes there may have been sent either before or after
                    // they were zeroed.
                    let unchanged = (new_size as usize).min(received.len());
                    assert!(received[..unchanged] == expected[..unchanged], "{case}");
                }
            }
        }
    }
}

/// If the file grows, a transfer of an exact length must not send the new bytes, but a transfer up
/// to the end of the file must.
#[test]
fn bytes_appended_while_a_file_is_sent_are_sent_only_without_an_exact_length() {
    let grown = pattern(FILE_BYTES + 100_000);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for family in FAMILIES {
            for &driver in DRIVERS {
                for (length, expected) in [
                    (Length::Exact(FILE_BYTES as u64), FILE_BYTES),
                    (Length::UntilEof, FILE_BYTES + 100_000),
                ] {
                    let file = pattern_file(FILE_BYTES);
                    let combination = (mechanism, family, driver);
                    let (result, received) =
                        send_while_changing(combination, &file, length, || {
                            let new_bytes = &grown[FILE_BYTES..];
                            file.write_all_at(new_bytes, FILE_BYTES as u64).unwrap();
                        });
                    assert_eq!(result.unwrap().by(mechanism), expected as u64);
                    assert!(received == grown[..expected], "{mechanism} {length:?}");
                }
            }
        }
    }
}
