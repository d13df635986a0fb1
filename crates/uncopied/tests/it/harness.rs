//! What all the tests need.

use std::fs::File;
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use uncopied::arena::{PageBuffer, Pages};
use uncopied::{Error, Mechanism, Report, SendFile, SendOptions, Sender};

/// What kind of stream socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Unix,
    Tcp,
}

pub(crate) const FAMILIES: [Family; 2] = [Family::Unix, Family::Tcp];

/// What waits between the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    Blocking,
    #[cfg(feature = "tokio")]
    Tokio,
}

#[cfg(feature = "tokio")]
pub(crate) const DRIVERS: &[Driver] = &[Driver::Blocking, Driver::Tokio];
#[cfg(not(feature = "tokio"))]
pub(crate) const DRIVERS: &[Driver] = &[Driver::Blocking];

/// How long a test waits for what must happen at once, before it calls it a hang.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// Two connected sockets. The second fails to read after [`HANG`].
pub(crate) fn pair(family: Family) -> (OwnedFd, File) {
    let (socket, peer): (OwnedFd, OwnedFd) = match family {
        Family::Unix => {
            let (socket, peer) = UnixStream::pair().unwrap();
            peer.set_read_timeout(Some(HANG)).unwrap();
            (socket.into(), peer.into())
        }
        Family::Tcp => {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            peer.set_read_timeout(Some(HANG)).unwrap();
            (listener.accept().unwrap().0.into(), peer.into())
        }
    };
    (socket, File::from(peer))
}

/// Makes the sender's buffer as small as the kernel allows.
pub(crate) fn shrink_buffer(socket: &OwnedFd) {
    rustix::net::sockopt::set_socket_send_buffer_size(socket, 1).unwrap();
}

/// Two connected sockets that take little by themselves: some 300 KiB.
pub(crate) fn narrow_pair(family: Family) -> (OwnedFd, File) {
    let (socket, peer) = pair(family);
    rustix::net::sockopt::set_socket_send_buffer_size(&socket, 64 << 10).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&peer, 64 << 10).unwrap();
    (socket, peer)
}

pub(crate) fn set_nonblocking(socket: &OwnedFd) {
    rustix::io::ioctl_fionbio(socket, true).unwrap();
}

/// Bytes that differ from place to place, so that none can be lost, doubled or swapped unseen.
pub(crate) fn content(len: usize) -> Vec<u8> {
    // Most tests need little of it, and each may run in a process of its own.
    static FIRST: LazyLock<Vec<u8>> = LazyLock::new(|| made(1 << 20));
    static ALL: LazyLock<Vec<u8>> = LazyLock::new(|| made(LONGEST));
    fn made(len: usize) -> Vec<u8> {
        (0..len as u64)
            .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect()
    }
    FIRST.get(..len).unwrap_or_else(|| &ALL[..len]).to_vec()
}

/// The longest content that a test asks for, in bytes.
const LONGEST: usize = 16 << 20;

/// A file of such bytes.
pub(crate) fn file_of(len: usize) -> File {
    file_with(&content(len))
}

pub(crate) fn file_with(content: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(content, 0).unwrap();
    file
}

/// Reads to the end of the stream and compares with the file's bytes from `offset` on: how many there
/// were, all of them right.
pub(crate) fn receive(peer: &mut impl Read, file: &File, offset: u64) -> u64 {
    receive_slowly(peer, file, offset, 1 << 20, Duration::ZERO)
}

/// The same, at most `at_most` bytes at a time with a pause after each.
pub(crate) fn receive_slowly(
    peer: &mut impl Read,
    file: &File,
    offset: u64,
    at_most: usize,
    pause: Duration,
) -> u64 {
    let mut received = vec![0; at_most];
    let mut expected = vec![0; at_most];
    let mut at = offset;
    loop {
        let count = match peer.read(&mut received) {
            Ok(0) => return at - offset,
            Ok(count) => count,
            // What had not been read before the sender was gone is lost; what was must be right.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return at - offset,
            Err(error) => panic!("after {} bytes: {error}", at - offset),
        };
        let expected = &mut expected[..count];
        file.read_exact_at(expected, at)
            .unwrap_or_else(|error| panic!("{count} bytes at {at} are not in the file: {error}"));
        assert!(
            received[..count] == *expected,
            "other bytes than the file's within {count} at {at}"
        );
        at += count as u64;
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
}

/// Sends, and closes the socket.
pub(crate) fn send(
    driver: Driver,
    family: Family,
    socket: OwnedFd,
    what: &SendFile<'_>,
) -> Result<Report, Error> {
    match driver {
        Driver::Blocking => {
            let _ = family;
            what.to(&socket)
        }
        #[cfg(feature = "tokio")]
        Driver::Tokio => runtime().block_on(async {
            set_nonblocking(&socket);
            match family {
                Family::Unix => {
                    let socket = tokio::net::UnixStream::from_std(socket.into()).unwrap();
                    what.to_tokio(&socket).await
                }
                Family::Tcp => {
                    let socket = tokio::net::TcpStream::from_std(socket.into()).unwrap();
                    what.to_tokio(&socket).await
                }
            }
        }),
    }
}

/// A runtime of one thread.
#[cfg(feature = "tokio")]
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Sends `what` while a peer reads it and compares it with `file` from `offset` on. Answers what the
/// sender was told, and how many bytes have arrived, all of them right.
pub(crate) fn deliver(
    driver: Driver,
    family: Family,
    what: &SendFile<'_>,
    file: &File,
    offset: u64,
) -> (Result<Report, Error>, u64) {
    let (socket, mut peer) = pair(family);
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || receive(&mut peer, file, offset));
        let result = send(driver, family, socket, what);
        (result, receiver.join().unwrap())
    })
}

/// Every byte went by `mechanism`, without a word about another.
pub(crate) fn assert_all_by(report: &Report, mechanism: Mechanism, bytes: u64, what: &str) {
    assert_eq!(report.by(mechanism), bytes, "{what}: {report}");
    assert_eq!(report.bytes(), bytes, "{what}: {report}");
    assert!(report.fallbacks().is_empty(), "{what}: {report}");
    assert!(!report.switched_off(), "{what}: {report}");
    let zero_copy = if mechanism.is_zero_copy() { bytes } else { 0 };
    assert_eq!(report.zero_copy_bytes(), zero_copy, "{what}: {report}");
    assert_eq!(report.copied_bytes(), bytes - zero_copy, "{what}: {report}");
}

/// The mechanisms that can send memory to a socket of this family.
pub(crate) fn for_memory(family: Family) -> &'static [Mechanism] {
    match family {
        Family::Tcp => &[
            Mechanism::MsgZerocopy,
            Mechanism::SendZc,
            Mechanism::Vmsplice,
            Mechanism::Copy,
        ],
        Family::Unix => &[Mechanism::Vmsplice, Mechanism::Copy],
    }
}

/// Frozen pages that hold [`content`].
pub(crate) fn pages_of(len: usize) -> Pages {
    PageBuffer::copy_from_slice(&content(len)).unwrap().freeze()
}

/// A sender by these mechanisms and no other, and its peer.
pub(crate) fn sender(
    family: Family,
    mechanisms: &[Mechanism],
    options: SendOptions,
) -> (Sender<OwnedFd>, File) {
    let (socket, peer) = pair(family);
    (
        Sender::with(socket, options.force_mechanisms(mechanisms)),
        peer,
    )
}

/// As [`sender`], with a socket that takes little by itself: the user's other processes may lend as well
/// (`RLIMIT_MEMLOCK`).
pub(crate) fn narrow_sender(
    family: Family,
    mechanisms: &[Mechanism],
    options: SendOptions,
) -> (Sender<OwnedFd>, File) {
    let (socket, peer) = narrow_pair(family);
    (
        Sender::with(socket, options.force_mechanisms(mechanisms)),
        peer,
    )
}

/// The next bytes of a stream are these.
pub(crate) fn expect_bytes(peer: &mut impl Read, expected: &[u8]) {
    let mut received = vec![0; expected.len()];
    peer.read_exact(&mut received).unwrap();
    assert!(received == expected, "other bytes than were sent");
}

/// The stream ends here.
pub(crate) fn expect_end(peer: &mut impl Read) {
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "more than was sent");
}

/// Waits until it is so, for [`HANG`] at most.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < HANG, "{what}: not within {HANG:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

const CHILD: &str = "UNCOPIED_TEST_CHILD";

/// Runs `body` in a process of its own: the test `name` (its path in this binary) starts this binary
/// anew with only itself, and there runs the body. Once a test.
pub(crate) fn in_child(name: &str, configure: impl FnOnce(&mut Command), body: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some_and(|child| child == name) {
        return body();
    }
    in_child_of(
        Command::new(std::env::current_exe().unwrap()),
        name,
        configure,
    );
}

/// The other half of [`in_child`]: starts the test by this command.
fn in_child_of(mut child: Command, name: &str, configure: impl FnOnce(&mut Command)) {
    child
        .args([name, "--exact", "--show-output", "--test-threads=1"])
        .env(CHILD, name);
    configure(&mut child);
    let Output {
        status,
        stdout,
        stderr,
    } = child.output().unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr),
    );
    assert!(status.success(), "{status}\n{stdout}\n{stderr}");
    assert!(
        stdout.contains("1 passed"),
        "no test is named {name}\n{stdout}"
    );
    for skipped in stdout.lines().filter(|line| line.starts_with("SKIP ")) {
        println!("{skipped}");
    }
}

/// As [`in_child`], in a network namespace of its own, as its administrator: with `lo` alone, and down.
pub(crate) fn in_network(name: &str, body: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some_and(|child| child == name) {
        return body();
    }
    let unshare = || {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--net"]);
        unshare
    };
    let has = |mut command: Command| {
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let mut veth = unshare();
    veth.args(["ip", "link", "add", "name", "uncopied0", "type", "veth"]);
    if !has(veth) {
        let why = "needs unshare and ip, user namespaces, and virtual network devices";
        return skip(name, why);
    }
    let mut child = unshare();
    child.arg(std::env::current_exe().unwrap());
    in_child_of(child, name, |_| {});
}

/// What a machine does not let a test do is a third result: printed, and forbidden by the gate where
/// everything should be there.
pub(crate) fn skip(name: &str, why: &str) {
    println!("SKIP {name}: {why}");
    assert!(
        std::env::var_os("UNCOPIED_TEST_FORBID_SKIPS").is_none(),
        "{name} must not be skipped here"
    );
}
