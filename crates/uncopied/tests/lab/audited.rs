//! The command `audit` counts each byte that the kernel copies for a sender, also where a
//! notification says that there was no copy.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use uncopied::{Mechanism, SendFile};

use crate::harness::{expect_bytes, expect_eof, is_child, pattern, run_only};
use crate::not_gathered::set_scatter_gather;
use crate::sides::{peer, two_sides};

/// The bytes that each program sends.
const ALL_BYTES: usize = 1 << 20;

/// The bytes of a send, and the packets of one over a card that cannot gather. The packet of a
/// send that is not full is copied in another way than the others, and so that its notification
/// says so.
const SEND_BYTES: usize = 128 << 10;
const SEND_PACKETS: usize = 16;

/// The port to which the programs connect.
const PORT: u16 = 7002;

/// Which program is to run, in its environment.
const PROGRAM_ENV: &str = "UNCOPIED_LAB_SENDER";

/// A program that sends, in a process of its own.
struct Program {
    /// Its name, which the kernel shortens to 15 bytes.
    name: &'static str,
    /// What it sends with.
    by: By,
    way: Way,
    /// How many bytes are copied for each byte that it sends.
    copies: RangeInclusive<f64>,
}

#[derive(Clone, Copy)]
enum By {
    Write,
    Sendfile,
    MsgZerocopy,
}

/// Where the bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    NetworkCard,
    /// A network card that cannot gather a packet from several pieces.
    NotGathering,
    Loopback,
}

/// No copies. A few bytes may be copied, such as those of a packet that is split.
const NONE: RangeInclusive<f64> = 0.0..=0.0099;

/// Each byte is copied once. Packets that are sent again are copied again.
const ONCE: RangeInclusive<f64> = 1.0..=1.2;

const PROGRAMS: [Program; 6] = [
    Program {
        name: "write",
        by: By::Write,
        way: Way::NetworkCard,
        copies: ONCE,
    },
    Program {
        name: "sendfile",
        by: By::Sendfile,
        way: Way::NetworkCard,
        copies: NONE,
    },
    Program {
        name: "zerocopy",
        by: By::MsgZerocopy,
        way: Way::NetworkCard,
        copies: NONE,
    },
    Program {
        name: "zerocopy-lo",
        by: By::MsgZerocopy,
        way: Way::Loopback,
        copies: ONCE,
    },
    Program {
        name: "zerocopy-no-sg",
        by: By::MsgZerocopy,
        way: Way::NotGathering,
        copies: ONCE,
    },
    Program {
        name: "sendfile-no-sg",
        by: By::Sendfile,
        way: Way::NotGathering,
        copies: ONCE,
    },
];

const TEST: &str = "audited::copied_bytes_are_counted_exactly";

#[test]
fn copied_bytes_are_counted_exactly() {
    if is_child(TEST) {
        return match std::env::var(PROGRAM_ENV) {
            Ok(name) => send(
                PROGRAMS
                    .iter()
                    .find(|program| program.name == name)
                    .unwrap(),
            ),
            Err(_) => run_programs(),
        };
    }
    two_sides(
        |mut socket| {
            // The other guest listens.
            socket.read_exact(&mut [0]).unwrap();
            assert_report(&audit());
        },
        |mut socket| {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
            socket.write_all(&[0]).unwrap();
            for program in &PROGRAMS {
                if program.way != Way::Loopback {
                    receive(listener.accept().unwrap().0);
                }
            }
            expect_eof(&mut socket);
        },
    );
}

/// Runs all programs under the command, and returns its report.
fn audit() -> Value {
    if !Path::new("/sys/kernel/tracing/events").exists() {
        let arguments = ["-t", "tracefs", "tracefs", "/sys/kernel/tracing"];
        let mounted = Command::new("mount").args(arguments).status();
        assert!(mounted.unwrap().success());
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(std::env::var("UNCOPIED_LAB_COMMAND").unwrap());
    command
        .args(["audit", "--json", "--output"])
        .arg(file.path());
    command.arg("--").arg(std::env::current_exe().unwrap());
    run_only(&mut command, TEST);
    assert!(command.status().unwrap().success());
    // The command has replaced the file.
    serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap()
}

fn assert_report(report: &Value) {
    assert_eq!(report["lost_records"], 0, "{report}");
    let processes = report["socket_bytes"].as_array().unwrap();
    for program in &PROGRAMS {
        let process = processes.iter().find(|row| row["name"] == program.name);
        let process = process.unwrap_or_else(|| panic!("{}: {report}", program.name));
        assert_eq!(
            process["sent"], ALL_BYTES as u64,
            "{}: {report}",
            program.name
        );
        let copied = process["sent_copied"].as_u64();
        let copied = copied.unwrap_or_else(|| panic!("{}: {report}", program.name));
        let copies = copied as f64 / ALL_BYTES as f64;
        println!("{}: {copied} of {ALL_BYTES} bytes copied", program.name);
        assert!(
            program.copies.contains(&copies),
            "{}: {report}",
            program.name
        );
    }
}

/// Runs the programs one after the other, each under its name.
fn run_programs() {
    let directory = tempfile::tempdir().unwrap();
    for program in &PROGRAMS {
        let link = directory.path().join(program.name);
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &link).unwrap();
        let mut command = Command::new(link);
        run_only(&mut command, TEST);
        let status = command.env(PROGRAM_ENV, program.name).status();
        assert!(status.unwrap().success(), "{}", program.name);
    }
}

/// What each program sends.
fn content() -> Vec<u8> {
    pattern(SEND_BYTES).repeat(ALL_BYTES / SEND_BYTES)
}

fn receive(mut socket: TcpStream) {
    expect_bytes(&mut socket, &content());
    expect_eof(&mut socket);
}

/// Sends everything, and waits until the peer has read it.
fn send(program: &Program) {
    if program.way != Way::Loopback {
        let socket = TcpStream::connect((peer(), PORT)).unwrap();
        // A socket that connects later would not try to send without a copy.
        set_scatter_gather(&socket, program.way == Way::NetworkCard);
        send_to(program, &socket);
        set_scatter_gather(&socket, true);
        return;
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let accepted = listener.accept().unwrap().0;
    std::thread::scope(|scope| {
        scope.spawn(|| receive(accepted));
        send_to(program, &socket);
    });
}

fn send_to(program: &Program, mut socket: &TcpStream) {
    let bytes = content();
    match program.by {
        By::Write => socket.write_all(&bytes).unwrap(),
        By::Sendfile => {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            let transfer = SendFile::new(&file).force_mechanisms(&[Mechanism::Sendfile]);
            let report = transfer.to(socket).unwrap();
            assert_eq!(report.by(Mechanism::Sendfile), ALL_BYTES as u64);
        }
        By::MsgZerocopy => {
            let length = match program.way {
                Way::NotGathering => SEND_PACKETS * zerocopy::payload_of_packet(socket),
                Way::NetworkCard | Way::Loopback => SEND_BYTES,
            };
            let sends = bytes.chunks(length);
            let count = sends.len();
            let copied = sends
                .filter(|send| zerocopy::is_copied(socket, send))
                .count();
            println!(
                "{}: {copied} of {count} notifications say that",
                program.name
            );
            match program.way {
                Way::NetworkCard => assert_eq!(copied, 0),
                Way::Loopback => assert_eq!(copied, count),
                // All are copied.
                Way::NotGathering => assert!(copied < count),
            }
        }
    }
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    expect_eof(&mut socket);
}

/// Sends with `MSG_ZEROCOPY` by hand: the library would ask the network card, and not believe the
/// notification.
#[allow(unsafe_code)]
mod zerocopy {
    use std::io::Error;
    use std::net::TcpStream;
    use std::os::fd::AsRawFd;

    /// `SO_EE_ORIGIN_ZEROCOPY` and `SO_EE_CODE_ZEROCOPY_COPIED` of `linux/errqueue.h`.
    const ORIGIN: u8 = 5;
    const COPIED: u8 = 1;

    /// Sends bytes, waits for the notification, and returns whether it says that bytes were copied.
    pub(super) fn is_copied(socket: &TcpStream, bytes: &[u8]) -> bool {
        let on: libc::c_int = 1;
        // SAFETY: the kernel reads an integer, a local.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ZEROCOPY,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        assert_eq!(result, 0, "{}", Error::last_os_error());
        // SAFETY: the kernel reads the bytes of the slice until the notification, and this function
        // does not return before.
        let result = unsafe {
            libc::send(
                socket.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                libc::MSG_ZEROCOPY | libc::MSG_NOSIGNAL,
            )
        };
        let sent = usize::try_from(result).map_err(|_| Error::last_os_error());
        assert_eq!(sent.unwrap(), bytes.len());
        notification(socket)
    }

    fn notification(socket: &TcpStream) -> bool {
        let mut poll = libc::pollfd {
            fd: socket.as_raw_fd(),
            events: 0,
            revents: 0,
        };
        // SAFETY: the call writes to the structure, a local.
        let ready = unsafe { libc::poll(&raw mut poll, 1, 60_000) };
        assert_eq!(ready, 1, "no notification");
        let mut control = [0_u64; 16];
        // SAFETY: the structure consists of integers and pointers, for which zeroes are valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: the kernel writes control messages to the array, which outlives the call.
        let result =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE) };
        assert_eq!(result, 0, "{}", Error::last_os_error());
        // SAFETY: the structure has the address and the length of the array.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        assert!(!header.is_null());
        // SAFETY: the header is that of a control message.
        let data = unsafe { libc::CMSG_DATA(header) };
        // SAFETY: the control message of an error queue has this structure. The array has room for
        // it, and is aligned to 8 bytes, as the data of a control message is in it.
        let error = unsafe { *data.cast::<libc::sock_extended_err>() };
        assert_eq!((error.ee_errno, error.ee_origin), (0, ORIGIN));
        assert_eq!(error.ee_info, error.ee_data, "one send");
        error.ee_code & COPIED != 0
    }

    /// The length of a full packet's payload (`TCP_MAXSEG`).
    pub(super) fn payload_of_packet(socket: &TcpStream) -> usize {
        let mut payload: libc::c_int = 0;
        let mut length = size_of_val(&payload) as libc::socklen_t;
        // SAFETY: the kernel writes an integer and its length, both locals.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_MAXSEG,
                (&raw mut payload).cast(),
                &raw mut length,
            )
        };
        assert_eq!(result, 0, "{}", Error::last_os_error());
        usize::try_from(payload).unwrap()
    }
}
