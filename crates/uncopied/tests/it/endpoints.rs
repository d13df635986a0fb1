//! Sources that do not support `sendfile`, and sinks that are not stream sockets.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};

use uncopied::policy::{Length, Plan};
use uncopied::{Errno, ErrorKind, Mechanism, SendFile, Transfer, driver};

use crate::harness::{
    DRIVERS, FAMILIES, Family, deliver, pattern_file, pattern_pages, socket_pair,
};

/// Files whose reported size is 0 or wrong, and whose content does not change during a test.
const FILES_WITHOUT_SIZE: [&str; 5] = [
    "/proc/version",
    "/proc/filesystems",
    "/proc/self/cmdline",
    "/proc/self/auxv",
    "/sys/kernel/uevent_seqnum",
];

/// The size that these files report is not the number of bytes that they contain. None of them can
/// be mapped, and some do not support `sendfile`. They must still be sent completely: with the
/// usual plan, and with each mechanism followed by `copy` as a fallback.
#[test]
fn files_of_procfs_and_sysfs_are_sent_completely() {
    for path in FILES_WITHOUT_SIZE {
        let expected = std::fs::read(path).unwrap();
        assert!(!expected.is_empty(), "{path}");
        let file = File::open(path).unwrap();
        let plans = Mechanism::FILE_TO_SOCKET.map(|first| vec![first, Mechanism::Copy]);
        for plan in plans.into_iter().chain([Vec::new()]) {
            for offset in [0, 1, expected.len() as u64 - 1, expected.len() as u64] {
                for &driver in DRIVERS {
                    let send = SendFile::new(&file).force_mechanisms(&plan).range(offset..);
                    let (result, received) = deliver(driver, Family::Unix, &send, &file, offset);
                    let report = result.unwrap_or_else(|error| panic!("{path} {plan:?}: {error}"));
                    assert_eq!(received, expected.len() as u64 - offset, "{path} {plan:?}");
                    assert_eq!(report.bytes(), received, "{path} {plan:?}");
                    assert_eq!(report.by(Mechanism::MmapWrite), 0, "{path}");
                }
            }
        }
    }
}

/// The file `/proc/self/auxv` supports neither `sendfile` nor `splice`, and cannot be mapped. If
/// the only forced mechanism is `sendfile`, `splice` or `mmap_write`, the transfer must fail.
#[test]
fn a_forced_mechanism_that_the_source_does_not_support_is_an_error() {
    let file = File::open("/proc/self/auxv").unwrap();
    for mechanism in [Mechanism::Sendfile, Mechanism::Splice, Mechanism::MmapWrite] {
        for &driver in DRIVERS {
            let forced = [mechanism];
            let send = SendFile::new(&file).force_mechanisms(&forced);
            let (result, received) = deliver(driver, Family::Tcp, &send, &file, 0);
            let error = result.expect_err("unsupported");
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{mechanism}: {error}");
            assert_eq!((error.moved(), received), (0, 0));
        }
    }
}

fn send_invalid_source(source: &impl AsFd, plan: &[Mechanism]) -> uncopied::Error {
    let (socket, _peer) = socket_pair(Family::Unix);
    let result = SendFile::new(source).force_mechanisms(plan).to(&socket);
    result.expect_err("this source cannot be sent")
}

/// Returns the lists of mechanisms to force: each mechanism followed by `copy` as a fallback, and
/// an empty list, which forces nothing.
fn plans() -> [Vec<Mechanism>; 5] {
    let [a, b, c, d] = Mechanism::FILE_TO_SOCKET.map(|first| vec![first, Mechanism::Copy]);
    [a, b, c, d, Vec::new()]
}

#[test]
fn a_directory_is_an_invalid_source() {
    let directory = File::open("/").unwrap();
    for plan in plans() {
        let error = send_invalid_source(&directory, &plan);
        assert_eq!(error.kind(), ErrorKind::Source, "{plan:?}: {error}");
        assert_eq!(
            std::io::Error::from(error).kind(),
            std::io::ErrorKind::IsADirectory
        );
    }
}

#[test]
fn pipes_and_sockets_are_invalid_sources() {
    let (reader, writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut &writer, b"must not be read").unwrap();
    let (socket, _other): (OwnedFd, _) = socket_pair(Family::Unix);
    for plan in plans() {
        for source in [reader.as_fd(), socket.as_fd()] {
            let error = send_invalid_source(&source, &plan);
            assert_eq!(
                error.kind(),
                ErrorKind::SourceNotSeekable,
                "{plan:?}: {error}"
            );
        }
    }
    drop(writer);
    let left = std::io::read_to_string(reader).unwrap();
    assert_eq!(left, "must not be read");
}

#[test]
fn a_file_that_is_open_only_for_writing_is_an_invalid_source() {
    let named = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(named.path(), [1; 5000]).unwrap();
    let file = OpenOptions::new().write(true).open(named.path()).unwrap();
    for plan in plans() {
        let error = send_invalid_source(&file, &plan);
        assert_eq!(error.kind(), ErrorKind::Source, "{plan:?}: {error}");
        assert_eq!(error.moved(), 0);
    }
}

/// Descriptors that are not stream sockets, and for each of them the file or the other end at which
/// anything written to the descriptor would arrive.
struct InvalidSinks {
    sinks: Vec<OwnedFd>,
    regular_file: File,
    pipe: std::io::PipeReader,
    datagrams: std::os::unix::net::UnixDatagram,
    udp: std::net::UdpSocket,
    packets: OwnedFd,
}

impl InvalidSinks {
    fn new() -> Self {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

        let regular_file = pattern_file(0);
        let (pipe, pipe_writer) = std::io::pipe().unwrap();
        let (datagram, datagrams) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let udp_sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        udp_sender.connect(udp.local_addr().unwrap()).unwrap();
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (packet, packets) = socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap();
        let sinks = vec![
            regular_file.try_clone().unwrap().into(),
            pipe_writer.into(),
            datagram.into(),
            udp_sender.into(),
            packet,
        ];
        Self {
            sinks,
            regular_file,
            pipe,
            datagrams,
            udp,
            packets,
        }
    }

    /// Asserts that nothing has been written to any of the sinks.
    fn assert_untouched(&self) {
        use rustix::io::ioctl_fionread;

        assert_eq!(self.regular_file.metadata().unwrap().len(), 0);
        assert_eq!(ioctl_fionread(&self.pipe).unwrap(), 0);
        assert_eq!(ioctl_fionread(&self.datagrams).unwrap(), 0);
        assert_eq!(ioctl_fionread(&self.udp).unwrap(), 0);
        assert_eq!(ioctl_fionread(&self.packets).unwrap(), 0);
    }
}

#[test]
fn only_a_stream_socket_is_a_valid_sink_for_files() {
    let file = pattern_file(10_000);
    let invalid = InvalidSinks::new();
    for sink in &invalid.sinks {
        let error = SendFile::new(&file).to(sink).expect_err("invalid sink");
        assert_eq!(error.kind(), ErrorKind::NotAStreamSocket, "{error}");
        assert_eq!(error.moved(), 0);
        assert_eq!(
            (error.call(), error.mechanism()),
            (Some("getsockopt"), None)
        );
    }
    invalid.assert_untouched();
}

/// A sender must check the type of its sink before it sends. Without this check, `vmsplice` would
/// write to files and pipes, and `copy` would send datagrams.
#[test]
fn only_a_stream_socket_is_a_valid_sink_for_memory() {
    use uncopied::{SendOptions, Sender};

    let invalid = InvalidSinks::new();
    let plans = Mechanism::MEMORY_TO_SOCKET.map(|mechanism| vec![mechanism]);
    for forced in plans.iter().chain([&Vec::new()]) {
        for sink in &invalid.sinks {
            let options = SendOptions::default().force_mechanisms(forced);
            let mut sender = Sender::with(sink.try_clone().unwrap(), options);
            let error = sender.send(pattern_pages(10_000)).expect_err("invalid");
            assert_eq!(error.kind(), ErrorKind::NotAStreamSocket, "{error}");
            let error = sender.try_send(pattern_pages(10_000)).expect_err("invalid");
            assert_eq!(error.kind(), ErrorKind::NotAStreamSocket, "{error}");
            assert_eq!(sender.report().bytes(), 0);
        }
    }
    invalid.assert_untouched();
}

/// A socket that has no peer must not be mistaken for one whose peer has closed the connection.
#[test]
fn a_listening_socket_is_not_connected() {
    use uncopied::{SendOptions, Sender};

    let file = pattern_file(10_000);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let unix = std::os::unix::net::UnixListener::bind(path).unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for listener in [OwnedFd::from(tcp), unix.into()] {
        for mechanism in Mechanism::FILE_TO_SOCKET {
            let send = SendFile::new(&file).force_mechanisms(&[mechanism]);
            let error = send.to(&listener).expect_err("no peer");
            assert_eq!(error.kind(), ErrorKind::NotConnected, "{mechanism}");
        }
        for mechanism in [Mechanism::Vmsplice, Mechanism::Copy] {
            let options = SendOptions::default().force_mechanisms(&[mechanism]);
            let mut sender = Sender::with(listener.try_clone().unwrap(), options);
            let error = sender.send(pattern_pages(10_000)).expect_err("no peer");
            assert_eq!(error.kind(), ErrorKind::NotConnected, "{mechanism}");
            assert_eq!(
                std::io::Error::from(error).kind(),
                std::io::ErrorKind::NotConnected
            );
        }
    }
}

/// Unlike [`SendFile`], a [`Transfer`] does not check in advance that the sink is a socket. It must
/// report the error when the first send fails because the sink is not a socket.
#[test]
fn a_transfer_to_a_sink_that_is_not_a_socket_is_an_error() {
    let file = pattern_file(10_000);
    let (_reader, pipe) = std::io::pipe().unwrap();
    let pipe = OwnedFd::from(pipe);
    for mechanism in [Mechanism::MmapWrite, Mechanism::Copy] {
        let mut transfer = Transfer::new(0, Length::UntilEof, Plan::of(&[mechanism]));
        let error = driver::blocking::run(&mut transfer, &file, &pipe).expect_err("not a socket");
        assert_eq!(error.kind(), ErrorKind::NotAStreamSocket, "{error}");
    }
}

/// A transfer records each mechanism that the source does not support, with its errno, so that
/// later plans can leave the mechanism out.
#[test]
fn a_transfer_records_unsupported_mechanisms() {
    let file = File::open("/proc/self/auxv").unwrap();
    for family in FAMILIES {
        let (socket, _peer) = socket_pair(family);
        let plan = Plan::of(&Mechanism::FILE_TO_SOCKET);
        let mut transfer = Transfer::new(0, Length::UntilEof, plan);
        driver::blocking::run(&mut transfer, &file, &socket).unwrap();
        let support = transfer.support();
        assert_eq!(support.refusal(Mechanism::Sendfile), Some(Errno::INVAL));
        assert_eq!(support.refusal(Mechanism::Splice), Some(Errno::INVAL));
        assert_eq!(support.refusal(Mechanism::MmapWrite), Some(Errno::NODEV));
        assert_eq!(support.refusal(Mechanism::Copy), None);
        let order: Vec<_> = transfer
            .report()
            .fallbacks()
            .iter()
            .map(|fallback| (fallback.from, fallback.to, fallback.at))
            .collect();
        let [a, b, c, d] = Mechanism::FILE_TO_SOCKET;
        assert_eq!(order, [(a, b, 0), (b, c, 0), (c, d, 0)]);
    }
}
