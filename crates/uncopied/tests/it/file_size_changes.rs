//! Files that shrink or grow while they are sent.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use uncopied::policy::Length;
use uncopied::{ErrorKind, Mechanism, SendFile};

use crate::harness::{DRIVERS, Driver, FAMILIES, Family, content, file_of, narrow_pair, send};

/// More than a socket and a pipe take by themselves.
const SIZE: usize = 4 << 20;

/// Sends while the peer, once it has read a little, does something to the file; then it reads the
/// rest. Answers what the sender was told and the bytes that arrived.
fn send_meanwhile(
    (mechanism, family, driver): (Mechanism, Family, Driver),
    file: &File,
    length: Length,
    meanwhile: impl FnOnce() + Send,
) -> (Result<uncopied::Report, uncopied::Error>, Vec<u8>) {
    let (socket, mut peer): (OwnedFd, File) = narrow_pair(family);
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let mut received = vec![0; 1000];
            peer.read_exact(&mut received).unwrap();
            meanwhile();
            peer.read_to_end(&mut received).unwrap();
            received
        });
        let forced = [mechanism];
        let what = SendFile::new(file).force_mechanisms(&forced).length(length);
        let result = send(driver, family, socket, &what);
        (result, receiver.join().unwrap())
    })
}

/// Bytes are owed when the file ends: an error with the count, never success. The guard:
/// `Transfer::ended`.
#[test]
fn a_file_that_shrinks_while_it_is_sent() {
    let expected = content(SIZE);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for family in FAMILIES {
            for &driver in DRIVERS {
                // In the middle of a page, of what is already sent, and of what is not.
                for to in [1, SIZE as u64 / 2 + 11] {
                    let what = format!("{mechanism} {family:?} {driver:?}, cut to {to}");
                    let file = file_of(SIZE);
                    let promised = SIZE as u64;
                    let how = (mechanism, family, driver);
                    let (result, received) =
                        send_meanwhile(how, &file, Length::Exact(promised), || {
                            file.set_len(to).unwrap();
                        });
                    let error = result.expect_err(&what);
                    assert_eq!(
                        error.kind(),
                        ErrorKind::SourceTooShort { promised },
                        "{what}"
                    );
                    assert_eq!(error.moved(), received.len() as u64, "{what}");
                    assert!(error.moved() < promised, "{what}");
                    // Whole pages are as they were: what was sent is not lost. What was in the page
                    // that is cut is the file's no more, and was read by the peer before or after.
                    let sure = (to as usize).min(received.len());
                    assert!(received[..sure] == expected[..sure], "{what}");
                }
            }
        }
    }
}

/// With a length the file's growth is not sent, without it is.
#[test]
fn a_file_that_grows_while_it_is_sent() {
    let more = content(SIZE + 100_000);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for family in FAMILIES {
            for &driver in DRIVERS {
                for (length, expected) in [
                    (Length::Exact(SIZE as u64), SIZE),
                    (Length::UntilEof, SIZE + 100_000),
                ] {
                    let file = file_of(SIZE);
                    let how = (mechanism, family, driver);
                    let (result, received) = send_meanwhile(how, &file, length, || {
                        file.write_all_at(&more[SIZE..], SIZE as u64).unwrap();
                    });
                    assert_eq!(result.unwrap().by(mechanism), expected as u64);
                    assert!(received == more[..expected], "{mechanism} {length:?}");
                }
            }
        }
    }
}
