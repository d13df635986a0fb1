//! Helpers that the tests share: files and memory with a known pattern, socket pairs, receivers
//! that check every byte, and child processes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use uncopied::arena::{PageBuffer, Pages};
use uncopied::{
    Errno, Error, ErrorKind, Mechanism, ReceiveFile, Report, SendFile, SendOptions, Sender, Sent,
};

/// The kind of stream socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Unix,
    Tcp,
}

pub(crate) const FAMILIES: [Family; 2] = [Family::Unix, Family::Tcp];

/// The driver of a transfer: the code that waits while the socket is full.
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

/// The time that a test waits for an event that should happen immediately. The test fails if the
/// event has not happened by then.
pub(crate) const HANG_TIMEOUT: Duration = Duration::from_secs(60);

/// Returns two connected sockets. Reading from the second one times out after [`HANG_TIMEOUT`].
pub(crate) fn socket_pair(family: Family) -> (OwnedFd, File) {
    let (socket, peer): (OwnedFd, OwnedFd) = match family {
        Family::Unix => {
            let (socket, peer) = UnixStream::pair().unwrap();
            peer.set_read_timeout(Some(HANG_TIMEOUT)).unwrap();
            (socket.into(), peer.into())
        }
        Family::Tcp => {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            peer.set_read_timeout(Some(HANG_TIMEOUT)).unwrap();
            (listener.accept().unwrap().0.into(), peer.into())
        }
    };
    (socket, File::from(peer))
}

/// Sets the send buffer of the socket to the smallest size that the kernel allows.
pub(crate) fn minimize_send_buffer(socket: &OwnedFd) {
    rustix::net::sockopt::set_socket_send_buffer_size(socket, 1).unwrap();
}

/// Returns two connected sockets with small buffers, which together hold only about 300 KiB of
/// unread data.
pub(crate) fn small_buffer_pair(family: Family) -> (OwnedFd, File) {
    let (socket, peer) = socket_pair(family);
    rustix::net::sockopt::set_socket_send_buffer_size(&socket, 64 << 10).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&peer, 64 << 10).unwrap();
    (socket, peer)
}

pub(crate) fn set_nonblocking(socket: &OwnedFd) {
    rustix::io::ioctl_fionbio(socket, true).unwrap();
}

/// Returns `len` bytes that depend on their position, so that a comparison detects a byte that was
/// lost, duplicated or moved. A shorter pattern is a prefix of a longer one.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    // Generate a short and a long pattern separately, because most tests need only the short one. A
    // test runner may start a process for each test, and each process has to generate its patterns
    // again.
    static SHORT: LazyLock<Vec<u8>> = LazyLock::new(|| generate(1 << 20));
    static LONG: LazyLock<Vec<u8>> = LazyLock::new(|| generate(MAX_PATTERN_BYTES));
    fn generate(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        fill_pattern(&mut bytes, PATTERN_KEY);
        bytes
    }
    SHORT.get(..len).unwrap_or_else(|| &LONG[..len]).to_vec()
}

/// The key of the usual pattern, and also its first eight bytes. It may be any number except 0:
/// with 0, those bytes would look like bytes that were never written.
const PATTERN_KEY: u64 = 0x243f_6a88_85a3_08d3;

/// The length of the longest pattern that a test needs.
const MAX_PATTERN_BYTES: usize = 16 << 20;

/// Fills `bytes` with a pattern in which each 8-byte word depends on `key` and on the position of
/// the word.
pub(crate) fn fill_pattern(bytes: &mut [u8], key: u64) {
    // 2^64 divided by the golden ratio. Each word is the previous word plus this number. Because
    // the number is odd, the sums run through all 64-bit values before one repeats, so no two words
    // of a pattern are the same.
    const INCREMENT: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut word = key;
    let mut words = bytes.chunks_exact_mut(8);
    for eight in &mut words {
        eight.copy_from_slice(&word.to_ne_bytes());
        word = word.wrapping_add(INCREMENT);
    }
    let rest = words.into_remainder();
    rest.copy_from_slice(&word.to_ne_bytes()[..rest.len()]);
}

/// Returns a temporary file that contains the first `len` bytes of the [`pattern`].
pub(crate) fn pattern_file(len: usize) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&pattern(len), 0).unwrap();
    file
}

/// Reads to the end of the stream, and asserts that its bytes are those of the file, starting at
/// `offset`. Returns the number of bytes read.
pub(crate) fn receive(peer: &mut impl Read, file: &File, offset: u64) -> u64 {
    receive_slowly(peer, file, offset, 1 << 20, Duration::ZERO)
}

/// Like [`receive`], but reads at most `max_read_bytes` at a time, with a pause after each read.
pub(crate) fn receive_slowly(
    peer: &mut impl Read,
    file: &File,
    offset: u64,
    max_read_bytes: usize,
    pause: Duration,
) -> u64 {
    let mut received = vec![0; max_read_bytes];
    let mut expected = vec![0; max_read_bytes];
    let mut at = offset;
    loop {
        let count = match peer.read(&mut received) {
            Ok(0) => return at - offset,
            Ok(count) => count,
            // After a reset, the unread bytes are lost, so return how many were read.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return at - offset,
            Err(error) => panic!("after {} bytes: {error}", at - offset),
        };
        let expected = &mut expected[..count];
        file.read_exact_at(expected, at)
            .unwrap_or_else(|error| panic!("{count} bytes at {at} are not in the file: {error}"));
        assert!(
            received[..count] == *expected,
            "some of the {count} bytes at {at} are not those of the file"
        );
        at += count as u64;
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
}

/// Sends a file with the given driver, and closes the socket.
pub(crate) fn send(
    driver: Driver,
    family: Family,
    socket: OwnedFd,
    send_file: &SendFile<'_>,
) -> Result<Report, Error> {
    match driver {
        Driver::Blocking => {
            let _ = family;
            send_file.to(&socket)
        }
        #[cfg(feature = "tokio")]
        Driver::Tokio => runtime().block_on(async {
            set_nonblocking(&socket);
            match family {
                Family::Unix => {
                    let socket = tokio::net::UnixStream::from_std(socket.into()).unwrap();
                    send_file.to_tokio(&socket).await
                }
                Family::Tcp => {
                    let socket = tokio::net::TcpStream::from_std(socket.into()).unwrap();
                    send_file.to_tokio(&socket).await
                }
            }
        }),
    }
}

/// The mechanisms that write to files. (`discard` writes to nothing.)
pub(crate) const TO_FILES: [Mechanism; 2] = [Mechanism::Splice, Mechanism::Copy];

/// Calls `run` with each mechanism that writes to files, each kind of socket, and each driver.
pub(crate) fn for_each_way_to_files(mut run: impl FnMut(Mechanism, Family, Driver)) {
    for mechanism in TO_FILES {
        for family in FAMILIES {
            for &driver in DRIVERS {
                run(mechanism, family, driver);
            }
        }
    }
}

/// Sends these bytes from a thread, and closes the connection.
pub(crate) fn sending(mut peer: File, bytes: Vec<u8>) -> JoinHandle<()> {
    thread::spawn(move || {
        // This fails if the receiver has failed, and closed the socket.
        let _ = peer.write_all(&bytes);
    })
}

/// Receives into a file with the given driver, and closes the socket.
pub(crate) fn receive_into(
    driver: Driver,
    family: Family,
    socket: OwnedFd,
    receive: &ReceiveFile<'_>,
) -> Result<Report, Error> {
    match driver {
        Driver::Blocking => {
            let _ = family;
            receive.from(&socket)
        }
        #[cfg(feature = "tokio")]
        Driver::Tokio => runtime().block_on(async {
            set_nonblocking(&socket);
            match family {
                Family::Unix => {
                    let socket = tokio::net::UnixStream::from_std(socket.into()).unwrap();
                    receive.from_tokio(&socket).await
                }
                Family::Tcp => {
                    let socket = tokio::net::TcpStream::from_std(socket.into()).unwrap();
                    receive.from_tokio(&socket).await
                }
            }
        }),
    }
}

/// Returns a single-threaded tokio runtime.
#[cfg(feature = "tokio")]
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Sends a file while a peer reads, and compares the bytes that arrive with those of `file`,
/// starting at `offset`. Returns the result of the send, and how many bytes arrived.
pub(crate) fn deliver(
    driver: Driver,
    family: Family,
    send_file: &SendFile<'_>,
    file: &File,
    offset: u64,
) -> (Result<Report, Error>, u64) {
    let (socket, mut peer) = socket_pair(family);
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || receive(&mut peer, file, offset));
        let result = send(driver, family, socket, send_file);
        (result, receiver.join().unwrap())
    })
}

/// Asserts that `mechanism` moved `bytes` bytes without a fallback, that no other mechanism moved
/// any, and that the report's totals are consistent with that.
pub(crate) fn assert_all_sent_by(report: &Report, mechanism: Mechanism, bytes: u64, case: &str) {
    assert_eq!(report.by(mechanism), bytes, "{case}: {report}");
    assert_eq!(report.bytes(), bytes, "{case}: {report}");
    assert!(report.fallbacks().is_empty(), "{case}: {report}");
    assert!(!report.switched_off(), "{case}: {report}");
    let zero_copy = if mechanism.is_zero_copy() { bytes } else { 0 };
    assert_eq!(report.zero_copy_bytes(), zero_copy, "{case}: {report}");
    assert_eq!(report.copied_bytes(), bytes - zero_copy, "{case}: {report}");
}

/// Returns the mechanisms that can send memory to a socket of this family.
pub(crate) fn memory_mechanisms(family: Family) -> &'static [Mechanism] {
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

/// Returns frozen pages that contain the first `len` bytes of the [`pattern`].
pub(crate) fn pattern_pages(len: usize) -> Pages {
    PageBuffer::copy_from_slice(&pattern(len)).unwrap().freeze()
}

/// Returns a sender that uses only `mechanisms`, and the sender's peer. If `mechanisms` is empty,
/// nothing is forced, and the sender uses the usual plan.
pub(crate) fn sender(
    family: Family,
    mechanisms: &[Mechanism],
    options: SendOptions,
) -> (Sender<OwnedFd>, File) {
    let (socket, peer) = socket_pair(family);
    (
        Sender::with(socket, options.force_mechanisms(mechanisms)),
        peer,
    )
}

/// Like [`sender`], but with a [`small_buffer_pair`], so that only a few bytes are in flight at a
/// time. That keeps zero-copy sends below the limit on locked memory (`RLIMIT_MEMLOCK`), which
/// counts the memory of all processes of the user.
pub(crate) fn small_buffer_sender(
    family: Family,
    mechanisms: &[Mechanism],
    options: SendOptions,
) -> (Sender<OwnedFd>, File) {
    let (socket, peer) = small_buffer_pair(family);
    (
        Sender::with(socket, options.force_mechanisms(mechanisms)),
        peer,
    )
}

/// Returns the result of a call that must not wait, or `None` if it would have had to wait for the
/// reason `kind`.
pub(crate) fn unless_blocked(result: Result<Sent, Error>, kind: ErrorKind) -> Option<Sent> {
    match result {
        Ok(sent) => {
            assert!(sent.bytes() > 0, "nothing was sent");
            Some(sent)
        }
        Err(error) if error.kind() == kind => {
            assert_eq!(error.moved(), 0);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Like [`unless_blocked`], but for a call that may have had to wait for either of the two reasons.
pub(crate) fn unless_full_or_at_limit(result: Result<Sent, Error>) -> Option<Sent> {
    let at_limit = |error: &Error| error.kind() == ErrorKind::InFlightLimit;
    let kind = match &result {
        Err(error) if at_limit(error) => ErrorKind::InFlightLimit,
        _ => ErrorKind::WouldBlock,
    };
    unless_blocked(result, kind)
}

/// Sends the pattern of `send_bytes` repeatedly, until nothing more can be sent. Calls `check`
/// after each attempt, with what was sent, if anything was. Returns the number of bytes sent.
pub(crate) fn send_until_full(
    sender: &mut Sender<OwnedFd>,
    send_bytes: usize,
    mut check: impl FnMut(&Sender<OwnedFd>, Option<&Sent>),
) -> usize {
    let mut total = 0;
    let mut pages = pattern_pages(send_bytes);
    loop {
        // If the last send was incomplete, continue where it ended, so that the stream repeats all
        // of the pattern without a gap. Otherwise use new pages, because sends of the same pages
        // together count only once for the process.
        let at = total % send_bytes;
        if at == 0 {
            pages = pattern_pages(send_bytes);
        }
        let sent = unless_full_or_at_limit(sender.try_send(pages.slice(at..)));
        check(sender, sent.as_ref());
        match sent {
            Some(sent) => total += sent.bytes() as usize,
            None => return total,
        }
    }
}

/// Returns how many bytes were written to the socket that the peer has not yet acknowledged
/// (`SIOCOUTQ`).
#[allow(unsafe_code)]
pub(crate) fn unacknowledged_bytes(socket: impl AsFd) -> u64 {
    let mut bytes: libc::c_int = 0;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: for a socket, TIOCOUTQ is SIOCOUTQ, which writes one int to the local variable.
    let result = unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut bytes) };
    assert_eq!(result, 0);
    u64::try_from(bytes).unwrap()
}

/// Asserts that the next bytes of the stream are `expected`.
pub(crate) fn expect_bytes(peer: &mut impl Read, expected: &[u8]) {
    let mut received = vec![0; expected.len()];
    peer.read_exact(&mut received).unwrap();
    assert!(
        received == expected,
        "the bytes differ from those that were sent"
    );
}

/// Asserts that the stream ends without further bytes.
pub(crate) fn expect_eof(peer: &mut impl Read) {
    assert_eq!(
        peer.read(&mut [0]).unwrap(),
        0,
        "there are more bytes than were sent"
    );
}

/// Waits until `condition` holds. Panics with `description` after [`HANG_TIMEOUT`].
pub(crate) fn wait_until(description: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(
            began.elapsed() < HANG_TIMEOUT,
            "{description}: not within {HANG_TIMEOUT:?}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns how long a soak test runs: the value of `UNCOPIED_SOAK_SECONDS`, which `just soak` sets,
/// or else `default`.
pub(crate) fn soak_time(default: Duration) -> Duration {
    let seconds = std::env::var("UNCOPIED_SOAK_SECONDS");
    seconds.map_or(default, |seconds| {
        Duration::from_secs(seconds.parse().expect("a number"))
    })
}

const CHILD_ENV: &str = "UNCOPIED_TEST_CHILD";

/// Runs `body` in a child process, for tests that change the state of the whole process.
///
/// In the parent, this starts the test binary again with `name` as the only test to run. `name`
/// must be the path of the calling test. In the child, the same test calls this function again,
/// which then runs `body`. A test can call this function only once, because the child would run the
/// bodies of all calls in the same process.
pub(crate) fn in_child(name: &str, configure: impl FnOnce(&mut Command), body: impl FnOnce()) {
    if is_child(name) {
        return body();
    }
    run_in_child(
        Command::new(std::env::current_exe().unwrap()),
        name,
        configure,
    );
}

/// Whether this process is a child that runs the test `name`.
pub(crate) fn is_child(name: &str) -> bool {
    std::env::var_os(CHILD_ENV).is_some_and(|child| child == name)
}

/// Makes the command `child`, which starts this test binary, run the test `name` only, in a process
/// that [`is_child`] recognises.
pub(crate) fn run_only(child: &mut Command, name: &str) {
    child
        .args([name, "--exact", "--show-output", "--test-threads=1"])
        .env(CHILD_ENV, name);
}

/// Runs the test `name` in the child process that the command `child` starts, and asserts that the
/// test passes. Prints the child's lines about skipped tests.
fn run_in_child(mut child: Command, name: &str, configure: impl FnOnce(&mut Command)) {
    run_only(&mut child, name);
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

/// Forks, and runs `body` in the child. Waits until the child exits, and asserts that `body` has
/// not panicked. A child that hangs is killed after [`HANG_TIMEOUT`], so that the assertion fails.
#[allow(unsafe_code)]
pub(crate) fn in_forked_child(body: impl FnOnce()) {
    // SAFETY: the child has only this thread. It runs `body`, which calls only the library and the
    // allocator, and ends with `_exit`. The library and the allocator must work in the child
    // whatever locks other threads of this process hold at the time of the fork. Those threads hold
    // no lock of the test harness: each caller runs in a child process started by `in_child`, where
    // the main thread of the test harness only waits.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        // SAFETY: the call only starts a timer, whose signal ends the child.
        unsafe { libc::alarm(HANG_TIMEOUT.as_secs() as u32) };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        // SAFETY: the call ends the child at once, without running the exit handlers that the child
        // has inherited.
        unsafe { libc::_exit(i32::from(result.is_err())) };
    }
    let mut status = 0;
    // SAFETY: the call writes the status to a local integer, and `child` is a child of this
    // process.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!((waited, status), (child, 0), "the child has failed");
}

/// Makes every later system call with this number fail with `errno`, in this thread and in those
/// that it starts. If `second_argument` is given, only calls with that second argument fail.
#[allow(unsafe_code)]
pub(crate) fn refuse_call(number: libc::c_long, second_argument: Option<u32>, errno: Errno) {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    // The lower half of a field of `struct seccomp_data`.
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let skip_unless = |value, skipped| libc::sock_filter {
        jf: skipped,
        ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value)
    };
    let end = |result| statement(libc::BPF_RET | libc::BPF_K, result);
    let errno = errno.raw_os_error().unsigned_abs();
    // The number of the call is at offset 0, and the second argument at offset 24.
    let mut filter = match second_argument {
        None => vec![load(0), skip_unless(number as u32, 1)],
        Some(argument) => vec![
            load(0),
            skip_unless(number as u32, 3),
            load(24),
            skip_unless(argument, 1),
        ],
    };
    filter.extend([
        end(libc::SECCOMP_RET_ERRNO | errno),
        end(libc::SECCOMP_RET_ALLOW),
    ]);
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the call only forbids this thread to gain privileges.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(result, 0);
    // SAFETY: the program is a local variable, and refers to a local vector of the given length.
    // The kernel copies both.
    let result = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Like [`in_child`], but the child runs in a new network namespace, where it has all capabilities.
/// The namespace's only interface is `lo`, which is down. If the machine does not allow creating
/// the namespace, the test is skipped.
pub(crate) fn in_network_namespace(name: &str, body: impl FnOnce()) {
    if is_child(name) {
        return body();
    }
    let unshare = || {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--net"]);
        unshare
    };
    let succeeds = |mut command: Command| {
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let mut veth = unshare();
    veth.args(["ip", "link", "add", "name", "uncopied0", "type", "veth"]);
    if !succeeds(veth) {
        let why = "needs unshare and ip, user namespaces, and virtual network devices";
        return skip(name, why);
    }
    let mut child = unshare();
    child.arg(std::env::current_exe().unwrap());
    run_in_child(child, name, |_| {});
}

/// Like [`in_child`], but the child runs in a new mount namespace, where it may mount file systems.
/// If the machine does not allow creating the namespace, the test is skipped.
pub(crate) fn in_mount_namespace(name: &str, body: impl FnOnce()) {
    if is_child(name) {
        return body();
    }
    let unshare = || {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--mount"]);
        unshare
    };
    let mut mount = unshare();
    mount.args(["mount", "-t", "tmpfs", "tmpfs", "/mnt"]);
    let status = mount.stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !status.is_ok_and(|status| status.success()) {
        return skip(name, "needs unshare and mount, user and mount namespaces");
    }
    let mut child = unshare();
    child.arg(std::env::current_exe().unwrap());
    run_in_child(child, name, |_| {});
}

/// Runs the command `ip` with these arguments.
pub(crate) fn run_ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

/// Reports that the test cannot run on this machine. A skip is neither a pass nor a failure: it is
/// printed, so that a script can count the skipped tests. If `UNCOPIED_TEST_FORBID_SKIPS` is set, a
/// skip is a failure.
pub(crate) fn skip(name: &str, why: &str) {
    println!("SKIP {name}: {why}");
    assert!(
        std::env::var_os("UNCOPIED_TEST_FORBID_SKIPS").is_none(),
        "{name} must not be skipped here"
    );
}
