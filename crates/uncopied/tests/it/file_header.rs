//! Files that are sent with a header and a trailer.

use std::os::fd::{AsRawFd, OwnedFd};

use bytes::Bytes;
use rustix::net::sockopt::{set_tcp_cork, set_tcp_nodelay, tcp_cork};
use uncopied::policy::Length;
use uncopied::{ErrorKind, Mechanism, SendFile};

use crate::harness::{
    DRIVERS, FAMILIES, Family, expect_bytes, expect_eof, pattern, pattern_file, send,
    small_buffer_pair, socket_pair,
};

/// Returns the bytes of a header or a trailer, which differ from those of the file.
fn text(len: usize, byte: u8) -> Bytes {
    (0..len)
        .map(|at| byte.wrapping_add((at % 97) as u8))
        .collect()
}

/// Every part arrives once and in order, whatever its length: also if the socket is full in the
/// middle of it.
#[test]
fn header_file_and_trailer_arrive_in_order() {
    const FILE_BYTES: usize = 300_001;
    let file = pattern_file(FILE_BYTES);
    for family in FAMILIES {
        for &driver in DRIVERS {
            for mechanism in Mechanism::FILE_TO_SOCKET {
                for (header, trailer) in [(10, 0), (0, 10), (1, 1), (700_000, 700_001)] {
                    for length in [Length::UntilEof, Length::Exact(100_000), Length::Exact(0)] {
                        let case = format!("{family:?} {driver:?} {mechanism} {header} {length:?}");
                        let (header, trailer) = (text(header, 1), text(trailer, 128));
                        let of_file = match length {
                            Length::Exact(bytes) => bytes as usize,
                            _ => FILE_BYTES - 7,
                        };
                        let mut expected = header.to_vec();
                        expected.extend(&pattern(FILE_BYTES)[7..7 + of_file]);
                        expected.extend(&trailer);
                        let send_file = SendFile::new(&file)
                            .range(7..)
                            .length(length)
                            .header(header.clone())
                            .trailer(trailer.clone())
                            .force_mechanisms(&[mechanism]);
                        let (socket, mut peer) = small_buffer_pair(family);
                        let report = std::thread::scope(|scope| {
                            scope.spawn(|| {
                                expect_bytes(&mut peer, &expected);
                                expect_eof(&mut peer);
                            });
                            send(driver, family, socket, &send_file).expect(&case)
                        });
                        assert_eq!(report.bytes(), expected.len() as u64, "{case}");
                        let copied = (header.len() + trailer.len()) as u64;
                        let by_copy = match mechanism {
                            Mechanism::Copy => expected.len() as u64,
                            _ => copied,
                        };
                        assert_eq!(report.by(Mechanism::Copy), by_copy, "{case}");
                    }
                }
            }
        }
    }
}

/// Returns how many packets with data the socket has sent (`tcpi_data_segs_out`).
#[allow(unsafe_code)]
fn data_packets_sent(socket: &OwnedFd) -> u32 {
    const DATA_SEGS_OUT: usize = 156;
    let mut info = [0_u8; 232];
    let mut len = info.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to the array.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    assert_eq!(result, 0);
    assert!(len as usize > DATA_SEGS_OUT + 4, "the kernel is too old");
    let bytes = info[DATA_SEGS_OUT..DATA_SEGS_OUT + 4].try_into().unwrap();
    u32::from_ne_bytes(bytes)
}

/// A short header, file and trailer share one packet, even with `TCP_NODELAY`. A header that
/// nothing follows is not held back.
#[test]
fn short_parts_share_a_packet() {
    let (file, empty) = (pattern_file(1000), pattern_file(0));
    for &driver in DRIVERS {
        for mechanism in Mechanism::FILE_TO_SOCKET {
            for (file, header, trailer) in [
                (&file, 100, 0),
                (&file, 0, 100),
                (&file, 100, 100),
                (&empty, 100, 0),
                (&empty, 100, 100),
                (&empty, 0, 100),
            ] {
                let (socket, mut peer) = socket_pair(Family::Tcp);
                set_tcp_nodelay(&socket, true).unwrap();
                let send_file = SendFile::new(file)
                    .header(text(header, 1))
                    .trailer(text(trailer, 128))
                    .force_mechanisms(&[mechanism]);
                let clone = socket.try_clone().unwrap();
                let report = send(driver, Family::Tcp, socket, &send_file).unwrap();
                let case = format!("{driver:?} {mechanism} {header} {trailer}: {report}");
                assert_eq!(data_packets_sent(&clone), 1, "{case}");
                assert!(!tcp_cork(&clone).unwrap(), "{case}: still corked");
                let mut expected = text(header, 1).to_vec();
                let of_file = report.bytes() as usize - header - trailer;
                expected.extend(pattern(of_file));
                expected.extend(text(trailer, 128));
                expect_bytes(&mut peer, &expected);
            }
        }
    }
}

/// A socket that the program has corked stays corked.
#[test]
fn the_cork_of_the_program_stays() {
    let file = pattern_file(1000);
    let (socket, mut peer) = socket_pair(Family::Tcp);
    set_tcp_cork(&socket, true).unwrap();
    let send_file = SendFile::new(&file).header("head").trailer("tail");
    send_file.to(&socket).unwrap();
    assert!(tcp_cork(&socket).unwrap());
    assert_eq!(data_packets_sent(&socket), 0);
    set_tcp_cork(&socket, false).unwrap();
    let mut expected = b"head".to_vec();
    expected.extend(pattern(1000));
    expected.extend(b"tail");
    expect_bytes(&mut peer, &expected);
}

/// If the file is too short, the error counts the header, and the trailer is not sent.
#[test]
fn no_trailer_follows_a_file_that_is_too_short() {
    let file = pattern_file(1000);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        let (socket, mut peer) = socket_pair(Family::Tcp);
        let send_file = SendFile::new(&file)
            .range(..1001)
            .header("head")
            .trailer("tail")
            .force_mechanisms(&[mechanism]);
        let error = send_file.to(&socket).unwrap_err();
        let promised = 1001 + 8;
        let kind = ErrorKind::SourceTooShort { promised };
        assert_eq!((error.kind(), error.moved()), (kind, 1004), "{error}");
        assert!(!tcp_cork(&socket).unwrap());
        drop(socket);
        let mut expected = b"head".to_vec();
        expected.extend(pattern(1000));
        expect_bytes(&mut peer, &expected);
        expect_eof(&mut peer);
    }
}

/// Dropping the future while the socket is full removes the cork, so that what was accepted reaches
/// the peer.
#[cfg(feature = "tokio")]
#[test]
fn a_dropped_send_leaves_no_cork() {
    use std::net::TcpStream;
    use std::os::fd::AsFd;

    use crate::harness::HANG_TIMEOUT;

    crate::harness::runtime().block_on(async {
        let file = pattern_file(10_000_000);
        let (socket, _peer) = small_buffer_pair(Family::Tcp);
        let socket = TcpStream::from(socket);
        socket.set_nonblocking(true).unwrap();
        let socket = tokio::net::TcpStream::from_std(socket).unwrap();
        let send_file = SendFile::new(&file).trailer("tail");
        let mut sending = Box::pin(send_file.to_tokio(&socket));
        let timeout = tokio::time::timeout(HANG_TIMEOUT / 300, &mut sending);
        timeout.await.expect_err("the socket is full");
        assert!(tcp_cork(socket.as_fd()).unwrap());
        drop(sending);
        assert!(!tcp_cork(socket.as_fd()).unwrap());
    });
}
