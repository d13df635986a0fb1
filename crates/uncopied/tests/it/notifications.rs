//! The kernel's notices: several in one, too many, among others; and what is learned from them.

#![allow(unsafe_code)]

use std::io::{Read, Write};
use std::mem::size_of_val;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use uncopied::{Errno, FreeReason, Mechanism, SendOptions, Sender};

use crate::harness::{
    Family, HANG, content, expect_bytes, in_child, in_network, narrow_sender, pages_of, sender,
    until,
};

const LENDING: [Mechanism; 1] = [Mechanism::MsgZerocopy];

/// How much a socket's notices take, outstanding or unread (`SO_MEMINFO`).
fn optmem(socket: impl AsFd) -> u32 {
    // SK_MEMINFO_OPTMEM and SK_MEMINFO_VARS of linux/sock_diag.h.
    const OPTMEM: usize = 6;
    let mut meminfo = [0_u32; 9];
    let mut len = size_of_val(&meminfo) as libc::socklen_t;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the answer is written to an array of integers, and no further than its length.
    let answer = unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            meminfo.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    assert_eq!(answer, 0);
    meminfo[OPTMEM]
}

fn set_option(socket: BorrowedFd<'_>, name: libc::c_int, value: libc::c_uint) {
    let len = size_of_val(&value) as libc::socklen_t;
    let (socket, level) = (socket.as_raw_fd(), libc::SOL_SOCKET);
    // SAFETY: the option is an int, and a pointer to one is passed with its size.
    let answer = unsafe { libc::setsockopt(socket, level, name, (&raw const value).cast(), len) };
    assert_eq!(answer, 0);
}

/// Whether something lies on the socket's error queue.
fn has_queued(socket: impl AsFd) -> bool {
    let mut ready = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::empty())];
    poll(&mut ready, Some(&Timespec::default())).unwrap() > 0
}

/// Many sends, whose notices nobody reads until the kernel has made one of them.
#[test]
fn one_notice_for_many_sends_settles_them_all() {
    // Below the number from which on sends take notices in.
    const SENDS: usize = 12;
    let (mut sender, mut peer) = sender(Family::Tcp, &LENDING, SendOptions::default());
    // Its own size tells what one takes.
    assert_eq!(sender.send(pages_of(5000)).unwrap().bytes(), 5000);
    expect_bytes(&mut peer, &content(5000));
    until("one notice", || has_queued(sender.get_ref()));
    let of_one = optmem(sender.get_ref());
    assert!(of_one > 0);

    let sends: Vec<_> = (0..SENDS)
        .map(|_| sender.send(pages_of(5000)).unwrap())
        .collect();
    for _ in 0..SENDS {
        expect_bytes(&mut peer, &content(5000));
    }
    until("all of them in one", || optmem(sender.get_ref()) == of_one);
    sender.reap();
    assert_eq!((optmem(sender.get_ref()), sender.in_flight_bytes()), (0, 0));
    for sent in sends {
        let settled = sent.completion().outcome().unwrap();
        assert_eq!(
            (settled.bytes, settled.reason),
            (5000, FreeReason::Notification)
        );
    }
    let report = sender.report();
    let all = 5000 * (SENDS as u64 + 1);
    assert_eq!((report.bytes(), report.kernel_copied()), (all, all));
}

/// So many sends that the peer has not acknowledged that the kernel has no room for another notice
/// (`optmem_max`): that send is copied and says so, and the next one is lent again.
#[test]
fn too_many_notices_outstanding_make_a_send_a_copy() {
    let (mut sender, mut peer) = sender(Family::Tcp, &LENDING, SendOptions::default());
    // Short sends that are not held back. A peer that reads would acknowledge them sooner than they are
    // made; one that does not acknowledges a few together, after 40 ms.
    rustix::net::sockopt::set_tcp_nodelay(sender.get_ref(), true).unwrap();
    let began = Instant::now();
    let mut bytes = 0;
    let refused = loop {
        assert!(began.elapsed() < HANG, "after {bytes} sends");
        let sent = sender.send(pages_of(1)).unwrap();
        bytes += 1;
        if sent.report().by(Mechanism::Copy) > 0 {
            break sent;
        }
    };
    let [step] = refused.report().fallbacks() else {
        panic!("{}", refused.report());
    };
    assert_eq!(
        (step.from, step.to, step.errno),
        (Mechanism::MsgZerocopy, Mechanism::Copy, Errno::NOBUFS)
    );
    let settled = refused.completion().outcome().unwrap();
    assert_eq!((settled.copied, settled.reason), (1, FreeReason::Copied));

    let receiver = std::thread::spawn(move || {
        let mut received = Vec::new();
        peer.read_to_end(&mut received).unwrap();
        received
    });
    until("all notices", || {
        sender.reap();
        sender.in_flight_bytes() == 0
    });
    let sent = sender.send(pages_of(1000)).unwrap();
    assert_eq!(sent.report().by(Mechanism::MsgZerocopy), 1000);
    drop(sender);
    let mut expected = vec![content(1)[0]; bytes];
    expected.extend(content(1000));
    assert!(receiver.join().unwrap() == expected);
}

/// More pages than the process may lock, without the privilege to lock them all the same.
#[test]
fn more_than_may_be_locked_is_copied() {
    in_child(
        "memory_notices::more_than_may_be_locked_is_copied",
        |_| {},
        || {
            let (mut sender, mut peer) = sender(Family::Tcp, &LENDING, SendOptions::default());
            let mut sets = capabilities(None).unwrap();
            sets.effective.remove(CapabilitySet::IPC_LOCK);
            set_capabilities(None, sets).unwrap();
            let maximum = getrlimit(Resource::Memlock).maximum;
            let current = Some(64 << 10);
            setrlimit(Resource::Memlock, Rlimit { current, maximum }).unwrap();

            let size = 256 << 10;
            let sent = sender.send(pages_of(size)).unwrap();
            let copied = sent.report().by(Mechanism::Copy);
            assert_eq!(copied, size as u64, "{}", sent.report());
            assert_eq!(sent.report().fallbacks()[0].errno, Errno::NOBUFS);
            expect_bytes(&mut peer, &content(size));
            assert_eq!(sender.in_flight_bytes(), 0);
            // What the limit allows is lent, once the user's other processes leave room for it.
            until("a send that is lent", || {
                let sent = sender.send(pages_of(4096)).unwrap();
                expect_bytes(&mut peer, &content(4096));
                sent.report().by(Mechanism::MsgZerocopy) == 4096
            });
        },
    );
}

/// Time stamps share the error queue: they are passed over, and the notices between them found.
#[test]
fn time_stamps_between_the_notices_are_passed_over() {
    // SOF_TIMESTAMPING_… of linux/net_tstamp.h: TX_SOFTWARE, SOFTWARE, OPT_ID, TX_SCHED, TX_ACK,
    // OPT_TSONLY.
    const TRANSMISSION: u32 = 1 << 1 | 1 << 4 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 11;
    for family in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(listener) = TcpListener::bind(family) else {
            println!("no {family} on this machine");
            continue;
        };
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut peer = listener.accept().unwrap().0;
        set_option(socket.as_fd(), libc::SO_TIMESTAMPING, TRANSMISSION);
        (&socket).write_all(b"first").unwrap();
        expect_bytes(&mut peer, b"first");
        until("a time stamp", || has_queued(&socket));

        let options = SendOptions::default().force_mechanisms(&LENDING);
        let mut sender = Sender::with(socket, options);
        let sends: Vec<_> = (0..40)
            .map(|_| {
                let sent = sender.send(pages_of(3000)).unwrap();
                expect_bytes(&mut peer, &content(3000));
                sent
            })
            .collect();
        for sent in sends {
            let settled = sent.completion().wait(Some(HANG)).unwrap();
            assert_eq!(
                (settled.bytes, settled.reason),
                (3000, FreeReason::Notification)
            );
        }
        // Once everything has come, one look takes it all in, whatever lies in between.
        until("one look", || {
            for _ in 0..10 {
                assert_eq!(sender.send(pages_of(3000)).unwrap().bytes(), 3000);
                expect_bytes(&mut peer, &content(3000));
            }
            std::thread::sleep(Duration::from_millis(20));
            sender.reap();
            sender.in_flight_bytes() == 0
        });
        until("an empty error queue", || {
            sender.reap();
            !has_queued(sender.get_ref())
        });
    }
}

/// Time stamps that nobody takes keep the socket ready for ever in the eyes of poll(2): a send that waits
/// for a peer times out nevertheless.
#[test]
fn a_send_times_out_with_time_stamps_on_the_queue() {
    const TRANSMISSION: u32 = 1 << 1 | 1 << 4 | 1 << 7 | 1 << 11;
    for mechanism in [Mechanism::Copy, Mechanism::Vmsplice, LENDING[0]] {
        let (mut sender, mut peer) =
            narrow_sender(Family::Tcp, &[mechanism], SendOptions::default());
        let patience = Duration::from_millis(100);
        let timeout = rustix::net::sockopt::Timeout::Send;
        rustix::net::sockopt::set_socket_timeout(sender.get_ref(), timeout, Some(patience))
            .unwrap();
        let option = libc::SO_TIMESTAMPING;
        set_option(sender.get_ref().as_fd(), option, TRANSMISSION);
        let error = sender.send(pages_of(16 << 20)).unwrap_err();
        assert_eq!(error.kind(), uncopied::ErrorKind::TimedOut, "{mechanism}");
        let moved = error.moved() as usize;
        assert!(moved > 0);
        expect_bytes(&mut peer, &content(16 << 20)[..moved]);
    }
}

/// Runs `ip` with these arguments.
fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

/// A peer behind a virtual link, which copies what it is lent, but is no address of this machine: the
/// plan lends to it, learns from the notices, and copies for a while.
#[test]
fn sends_that_keep_coming_back_copied_pause_the_lending() {
    in_network(
        "memory_notices::sends_that_keep_coming_back_copied_pause_the_lending",
        || {
            // The peer's thread has a network of its own.
            let (send_id, id) = mpsc::channel();
            let (linked, wait_for_link) = mpsc::channel::<()>();
            let (send_address, address) = mpsc::channel();
            let peer = std::thread::spawn(move || {
                // SAFETY: only the network of this thread changes, not its descriptors.
                assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
                send_id.send(rustix::thread::gettid()).unwrap();
                wait_for_link.recv().unwrap();
                ip("addr add 10.77.0.2/24 dev uncopied1");
                ip("link set uncopied1 up");
                let listener = TcpListener::bind("10.77.0.2:0").unwrap();
                send_address.send(listener.local_addr().unwrap()).unwrap();
                let mut received = Vec::new();
                let (mut socket, _) = listener.accept().unwrap();
                socket.set_read_timeout(Some(HANG)).unwrap();
                socket.read_to_end(&mut received).unwrap();
                received
            });
            let id = id.recv().unwrap().as_raw_nonzero();
            let link = "link add uncopied0 type veth peer name uncopied1 netns";
            ip(&format!("{link} {id}"));
            ip("addr add 10.77.0.1/24 dev uncopied0");
            ip("link set uncopied0 up");
            linked.send(()).unwrap();

            let socket = TcpStream::connect(address.recv().unwrap()).unwrap();
            let mut sender = Sender::new(socket);
            let size = 32 << 10;
            let mut sends = 0;
            let mut send = || {
                sends += 1;
                let sent = sender.send(pages_of(size)).unwrap();
                let settled = sent.completion().wait(Some(HANG)).unwrap();
                assert_eq!((settled.bytes, settled.copied), (size as u64, size as u64));
                let lent = sent.report().by(Mechanism::MsgZerocopy);
                assert!(lent == 0 || lent == size as u64, "{}", sent.report());
                // The kernel said so of what was lent, and the call of what was not.
                let rule = if lent > 0 {
                    FreeReason::Notification
                } else {
                    FreeReason::Copied
                };
                assert_eq!(settled.reason, rule);
                lent > 0
            };
            // It is lent until eight notices have said "copied", then pauses, and tries again.
            assert!((0..8).all(|_| send()), "lent at first");
            assert!((0..256).all(|_| !send()), "copied for a while");
            assert!((0..8).all(|_| send()), "lent again");
            assert!(!send(), "and copied again");

            let report = sender.report();
            assert_eq!(report.kernel_copied(), 16 * size as u64);
            assert_eq!(report.zero_copy_bytes(), 0, "{report}");
            drop(sender);
            let received = peer.join().unwrap();
            assert_eq!(received.len(), sends * size);
            assert!(received.chunks(size).all(|chunk| chunk == content(size)));
        },
    );
}
