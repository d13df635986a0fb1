//! Sources that cannot sendfile, sinks that are none.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};

use uncopied::policy::{Length, Plan};
use uncopied::{Errno, ErrorKind, Mechanism, SendFile, Transfer, driver};

use crate::harness::{DRIVERS, FAMILIES, Family, deliver, file_of, pair};

/// Files whose size is 0, or wrong, and whose bytes stay the same.
const WITHOUT_SIZE: [&str; 5] = [
    "/proc/version",
    "/proc/filesystems",
    "/proc/self/cmdline",
    "/proc/self/auxv",
    "/sys/kernel/uevent_seqnum",
];

/// Some of these cannot sendfile, none can be mapped, all have more or fewer bytes than they say: they
/// arrive whole all the same, by the plan and by each mechanism with `copy` behind it.
#[test]
fn files_of_procfs_and_sysfs() {
    for path in WITHOUT_SIZE {
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

/// What procfs cannot do is said, not passed over: no mapping, and of some files no sendfile.
#[test]
fn a_forced_mechanism_that_cannot_is_unsupported() {
    let file = File::open("/proc/self/auxv").unwrap();
    for mechanism in [Mechanism::Sendfile, Mechanism::Splice, Mechanism::MmapWrite] {
        for &driver in DRIVERS {
            let forced = [mechanism];
            let send = SendFile::new(&file).force_mechanisms(&forced);
            let (result, received) = deliver(driver, Family::Tcp, &send, &file, 0);
            let error = result.expect_err("it cannot");
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{mechanism}: {error}");
            assert_eq!((error.moved(), received), (0, 0));
        }
    }
}

fn refused(source: &impl AsFd, plan: &[Mechanism]) -> uncopied::Error {
    let (socket, _peer) = pair(Family::Unix);
    let result = SendFile::new(source).force_mechanisms(plan).to(&socket);
    result.expect_err("no such source can be sent")
}

/// By the plan and by each mechanism with `copy` behind it.
fn plans() -> [Vec<Mechanism>; 5] {
    let [a, b, c, d] = Mechanism::FILE_TO_SOCKET.map(|first| vec![first, Mechanism::Copy]);
    [a, b, c, d, Vec::new()]
}

#[test]
fn a_directory_is_no_source() {
    let directory = File::open("/").unwrap();
    for plan in plans() {
        let error = refused(&directory, &plan);
        assert_eq!(error.kind(), ErrorKind::Source, "{plan:?}: {error}");
        assert_eq!(
            std::io::Error::from(error).kind(),
            std::io::ErrorKind::IsADirectory
        );
    }
}

#[test]
fn pipes_and_sockets_are_no_sources() {
    let (reader, writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut &writer, b"must not be taken out").unwrap();
    let (socket, _other): (OwnedFd, _) = pair(Family::Unix);
    for plan in plans() {
        for source in [reader.as_fd(), socket.as_fd()] {
            let error = refused(&source, &plan);
            assert_eq!(
                error.kind(),
                ErrorKind::SourceNotSeekable,
                "{plan:?}: {error}"
            );
        }
    }
    drop(writer);
    let left = std::io::read_to_string(reader).unwrap();
    assert_eq!(left, "must not be taken out");
}

#[test]
fn a_file_that_is_open_for_writing_only_is_no_source() {
    let named = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(named.path(), [1; 5000]).unwrap();
    let file = OpenOptions::new().write(true).open(named.path()).unwrap();
    for plan in plans() {
        let error = refused(&file, &plan);
        assert_eq!(error.kind(), ErrorKind::Source, "{plan:?}: {error}");
        assert_eq!(error.moved(), 0);
    }
}

#[test]
fn only_a_stream_socket_is_a_sink() {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    let file = file_of(10_000);
    let regular = file_of(0);
    let (_reader, pipe) = std::io::pipe().unwrap();
    let (datagram, _peer) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let (packets, _peer) = socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap();
    for sink in [
        regular.as_fd(),
        pipe.as_fd(),
        datagram.as_fd(),
        udp.as_fd(),
        packets.as_fd(),
    ] {
        let error = SendFile::new(&file).to(&sink).expect_err("it is no sink");
        assert_eq!(error.kind(), ErrorKind::NotAStreamSocket, "{error}");
        assert_eq!(error.moved(), 0);
    }
    assert_eq!(regular.metadata().unwrap().len(), 0);
}

/// A `Transfer` does not look at the sink first; what cannot be sent to still answers by its errno.
#[test]
fn a_transfer_to_no_socket_says_so() {
    let file = file_of(10_000);
    let (_reader, pipe) = std::io::pipe().unwrap();
    for mechanism in [Mechanism::MmapWrite, Mechanism::Copy] {
        let mut transfer = Transfer::new(0, Length::UntilEof, Plan::of(&[mechanism]));
        let error =
            driver::blocking::run(&mut transfer, &file, &pipe).expect_err("it is no socket");
        assert_eq!(error.kind(), ErrorKind::NotAStreamSocket, "{error}");
    }
}

/// Every refusal is kept, with its errno, where later plans can read it.
#[test]
fn a_transfer_knows_what_was_refused() {
    let file = File::open("/proc/self/auxv").unwrap();
    for family in FAMILIES {
        let (socket, _peer) = pair(family);
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
            .map(|step| (step.from, step.to, step.at))
            .collect();
        let [a, b, c, d] = Mechanism::FILE_TO_SOCKET;
        assert_eq!(order, [(a, b, 0), (b, c, 0), (c, d, 0)]);
    }
}
