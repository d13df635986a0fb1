//! Notifications of `MSG_ZEROCOPY` sends: those that the kernel merges, those that it has no memory
//! for, those between other messages on the error queue, and those that report a copy.

#![allow(unsafe_code)]

use std::io::{Read, Write};
use std::mem::size_of_val;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use uncopied::{Errno, FreeReason, Mechanism, SendOptions, Sender};

use crate::harness::{
    Family, HANG_TIMEOUT, expect_bytes, in_child, in_network_namespace, pattern, pattern_pages,
    run_ip, sender, small_buffer_sender, unacknowledged_bytes, wait_until,
};

const MSG_ZEROCOPY: [Mechanism; 1] = [Mechanism::MsgZerocopy];

/// Returns how many bytes of kernel memory the socket uses for its notifications (`SO_MEMINFO`):
/// for unread ones, and for those that the kernel will deliver later.
fn notification_memory(socket: impl AsFd) -> u32 {
    // SK_MEMINFO_OPTMEM and SK_MEMINFO_VARS of linux/sock_diag.h.
    const OPTMEM: usize = 6;
    let mut meminfo = [0_u32; 9];
    let mut len = size_of_val(&meminfo) as libc::socklen_t;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the call writes to an array of integers, and never past the end of the array, whose
    // length is passed.
    let result = unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            meminfo.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    assert_eq!(result, 0);
    meminfo[OPTMEM]
}

fn set_option(socket: BorrowedFd<'_>, name: libc::c_int, value: libc::c_uint) {
    let len = size_of_val(&value) as libc::socklen_t;
    let (socket, level) = (socket.as_raw_fd(), libc::SOL_SOCKET);
    // SAFETY: the option has the type `int`, and the call gets a pointer to an integer of that size
    // and its length.
    let result = unsafe { libc::setsockopt(socket, level, name, (&raw const value).cast(), len) };
    assert_eq!(result, 0);
}

/// Whether the error queue of the socket has an entry.
fn has_error_queue_entry(socket: impl AsFd) -> bool {
    let mut ready = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::empty())];
    poll(&mut ready, Some(&Timespec::default())).unwrap() > 0
}

/// The kernel merges the notifications of consecutive sends into one message as long as the process
/// does not read that message. The merged notification must complete all of the sends.
#[test]
fn one_notification_completes_several_sends() {
    // With 16 or more outstanding sends, each further send reads the error queue first. Stay below
    // that, so that the notifications remain unread and are merged.
    const SEND_COUNT: usize = 12;
    let (mut sender, mut peer) = sender(Family::Tcp, &MSG_ZEROCOPY, SendOptions::default());
    // First measure how much memory a single notification uses.
    assert_eq!(sender.send(pattern_pages(5000)).unwrap().bytes(), 5000);
    expect_bytes(&mut peer, &pattern(5000));
    wait_until("one notification", || {
        has_error_queue_entry(sender.get_ref())
    });
    let memory_of_one = notification_memory(sender.get_ref());
    assert!(memory_of_one > 0);

    let sends: Vec<_> = (0..SEND_COUNT)
        .map(|_| sender.send(pattern_pages(5000)).unwrap())
        .collect();
    for _ in 0..SEND_COUNT {
        expect_bytes(&mut peer, &pattern(5000));
    }
    wait_until("one notification for all sends", || {
        notification_memory(sender.get_ref()) == memory_of_one
    });
    sender.reap();
    assert_eq!(notification_memory(sender.get_ref()), 0);
    assert_eq!(sender.in_flight_bytes(), 0);
    for sent in sends {
        let outcome = sent.completion().outcome().unwrap();
        assert_eq!(
            (outcome.bytes, outcome.reason),
            (5000, FreeReason::Notification)
        );
    }
    let report = sender.report();
    let total = 5000 * (SEND_COUNT as u64 + 1);
    assert_eq!((report.bytes(), report.kernel_copied()), (total, total));
}

/// The kernel reserves memory for the notification of each zero-copy send, up to `optmem_max` per
/// socket. A send for which no memory is left must be copied and must report that. Later sends must
/// be zero-copy again.
#[test]
fn a_send_without_room_for_its_notification_is_copied() {
    let (mut sender, mut peer) = sender(Family::Tcp, &MSG_ZEROCOPY, SendOptions::default());
    // Make the notifications accumulate: use short sends without delay (`TCP_NODELAY`), and a peer
    // that does not read. Such a peer acknowledges many sends together, up to 40 ms late. A peer
    // that reads would acknowledge each send right away.
    rustix::net::sockopt::set_tcp_nodelay(sender.get_ref(), true).unwrap();
    let began = Instant::now();
    let mut bytes = 0;
    let refused = loop {
        assert!(began.elapsed() < HANG_TIMEOUT, "after {bytes} sends");
        let sent = sender.send(pattern_pages(1)).unwrap();
        bytes += 1;
        if sent.report().by(Mechanism::Copy) > 0 {
            break sent;
        }
    };
    let [fallback] = refused.report().fallbacks() else {
        panic!("{}", refused.report());
    };
    assert_eq!(
        (fallback.from, fallback.to, fallback.errno),
        (Mechanism::MsgZerocopy, Mechanism::Copy, Errno::NOBUFS)
    );
    let outcome = refused.completion().outcome().unwrap();
    assert_eq!((outcome.copied, outcome.reason), (1, FreeReason::Copied));

    let receiver = std::thread::spawn(move || {
        let mut received = Vec::new();
        peer.read_to_end(&mut received).unwrap();
        received
    });
    wait_until("all notifications", || {
        sender.reap();
        sender.in_flight_bytes() == 0
    });
    let sent = sender.send(pattern_pages(1000)).unwrap();
    assert_eq!(sent.report().by(Mechanism::MsgZerocopy), 1000);
    drop(sender);
    let mut expected = vec![pattern(1)[0]; bytes];
    expected.extend(pattern(1000));
    assert!(receiver.join().unwrap() == expected);
}

/// A send of more pages than the process may lock (`RLIMIT_MEMLOCK`) must be copied. The test first
/// drops `CAP_IPC_LOCK`, which would exempt the process from the limit.
#[test]
fn a_send_beyond_the_limit_on_locked_memory_is_copied() {
    in_child(
        "notifications::a_send_beyond_the_limit_on_locked_memory_is_copied",
        |_| {},
        || {
            let (mut sender, mut peer) = sender(Family::Tcp, &MSG_ZEROCOPY, SendOptions::default());
            let mut sets = capabilities(None).unwrap();
            sets.effective.remove(CapabilitySet::IPC_LOCK);
            set_capabilities(None, sets).unwrap();
            let maximum = getrlimit(Resource::Memlock).maximum;
            let current = Some(64 << 10);
            setrlimit(Resource::Memlock, Rlimit { current, maximum }).unwrap();

            let size = 256 << 10;
            let sent = sender.send(pattern_pages(size)).unwrap();
            let copied = sent.report().by(Mechanism::Copy);
            assert_eq!(copied, size as u64, "{}", sent.report());
            assert_eq!(sent.report().fallbacks()[0].errno, Errno::NOBUFS);
            expect_bytes(&mut peer, &pattern(size));
            assert_eq!(sender.in_flight_bytes(), 0);
            // A send below the limit is zero-copy. Retry it, because the user's other processes
            // count against the same limit and may leave no room at first.
            wait_until("a zero-copy send", || {
                let sent = sender.send(pattern_pages(4096)).unwrap();
                expect_bytes(&mut peer, &pattern(4096));
                sent.report().by(Mechanism::MsgZerocopy) == 4096
            });
        },
    );
}

/// The kernel puts timestamps on the same error queue as notifications. The library must skip the
/// timestamps, and must find every notification between them.
#[test]
fn timestamps_between_notifications_are_skipped() {
    // SOF_TIMESTAMPING_… of linux/net_tstamp.h: TX_SOFTWARE, SOFTWARE, OPT_ID, TX_SCHED, TX_ACK,
    // OPT_TSONLY.
    const TIMESTAMP_FLAGS: u32 = 1 << 1 | 1 << 4 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 11;
    for family in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(listener) = TcpListener::bind(family) else {
            println!("this machine cannot listen on {family}");
            continue;
        };
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut peer = listener.accept().unwrap().0;
        set_option(socket.as_fd(), libc::SO_TIMESTAMPING, TIMESTAMP_FLAGS);
        (&socket).write_all(b"first").unwrap();
        expect_bytes(&mut peer, b"first");
        wait_until("a timestamp", || has_error_queue_entry(&socket));

        let options = SendOptions::default().force_mechanisms(&MSG_ZEROCOPY);
        let mut sender = Sender::with(socket, options);
        let sends: Vec<_> = (0..40)
            .map(|_| {
                let sent = sender.send(pattern_pages(3000)).unwrap();
                expect_bytes(&mut peer, &pattern(3000));
                sent
            })
            .collect();
        for sent in sends {
            let outcome = sent.completion().wait(Some(HANG_TIMEOUT)).unwrap();
            assert_eq!(
                (outcome.bytes, outcome.reason),
                (3000, FreeReason::Notification)
            );
        }
        // Once all entries have arrived, a single call of `reap` must process every notification.
        wait_until("a reap that completes every send", || {
            for _ in 0..10 {
                assert_eq!(sender.send(pattern_pages(3000)).unwrap().bytes(), 3000);
                expect_bytes(&mut peer, &pattern(3000));
            }
            std::thread::sleep(Duration::from_millis(20));
            sender.reap();
            sender.in_flight_bytes() == 0
        });
        wait_until("an empty error queue", || {
            sender.reap();
            !has_error_queue_entry(sender.get_ref())
        });
    }
}

/// While there are unread timestamps on the error queue, `poll(2)` returns at once and reports the
/// socket as ready. A send that waits for the peer must still time out.
#[test]
fn a_send_times_out_with_timestamps_on_the_error_queue() {
    const TIMESTAMP_FLAGS: u32 = 1 << 1 | 1 << 4 | 1 << 7 | 1 << 11;
    for mechanism in [Mechanism::Copy, Mechanism::Vmsplice, MSG_ZEROCOPY[0]] {
        let (mut sender, mut peer) =
            small_buffer_sender(Family::Tcp, &[mechanism], SendOptions::default());
        let timeout = Some(Duration::from_millis(100));
        let kind = rustix::net::sockopt::Timeout::Send;
        rustix::net::sockopt::set_socket_timeout(sender.get_ref(), kind, timeout).unwrap();
        let option = libc::SO_TIMESTAMPING;
        set_option(sender.get_ref().as_fd(), option, TIMESTAMP_FLAGS);
        let error = sender.send(pattern_pages(16 << 20)).unwrap_err();
        assert_eq!(error.kind(), uncopied::ErrorKind::TimedOut, "{mechanism}");
        let moved = error.moved() as usize;
        assert!(moved > 0);
        expect_bytes(&mut peer, &pattern(16 << 20)[..moved]);
    }
}

/// The peer is at the other end of a virtual Ethernet link (`veth`), over which the kernel copies
/// all bytes of zero-copy sends. The peer's address is not a local one, so the plan starts with
/// zero-copy sends. After several notifications that report a copy, the sender must use `copy` for
/// a while, and then try zero copy again.
#[test]
fn repeated_copies_by_the_kernel_pause_zero_copy_sends() {
    in_network_namespace(
        "notifications::repeated_copies_by_the_kernel_pause_zero_copy_sends",
        || {
            // Run the peer in a thread that has its own network namespace.
            let (send_id, id) = mpsc::channel();
            let (linked, wait_for_link) = mpsc::channel::<()>();
            let (send_address, address) = mpsc::channel();
            let peer = std::thread::spawn(move || {
                // SAFETY: the call changes only the network namespace of this thread. Descriptors
                // stay valid.
                assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
                send_id.send(rustix::thread::gettid()).unwrap();
                wait_for_link.recv().unwrap();
                run_ip("addr add 10.77.0.2/24 dev uncopied1");
                run_ip("link set uncopied1 up");
                let listener = TcpListener::bind("10.77.0.2:0").unwrap();
                send_address.send(listener.local_addr().unwrap()).unwrap();
                let mut received = Vec::new();
                let (mut socket, _) = listener.accept().unwrap();
                socket.set_read_timeout(Some(HANG_TIMEOUT)).unwrap();
                socket.read_to_end(&mut received).unwrap();
                received
            });
            let id = id.recv().unwrap().as_raw_nonzero();
            let link = "link add uncopied0 type veth peer name uncopied1 netns";
            run_ip(&format!("{link} {id}"));
            run_ip("addr add 10.77.0.1/24 dev uncopied0");
            run_ip("link set uncopied0 up");
            linked.send(()).unwrap();

            let socket = TcpStream::connect(address.recv().unwrap()).unwrap();
            let mut sender = Sender::new(socket);
            let size = 32 << 10;
            let mut sends = 0;
            let mut send = || {
                // If the queue of the socket has no room for all of a send, the send takes several
                // calls, each of which has a notification. They would not be as many as the sends.
                wait_until("the peer has acknowledged every byte", || {
                    unacknowledged_bytes(sender.get_ref()) == 0
                });
                // A send is copied while the user's other processes lock too much memory. Such a
                // send has no notification, so it changes nothing: repeat it.
                let sent = loop {
                    sends += 1;
                    let sent = sender.send(pattern_pages(size)).unwrap();
                    let fallbacks = sent.report().fallbacks();
                    if !fallbacks.iter().any(|it| it.errno == Errno::NOBUFS) {
                        break sent;
                    }
                };
                let outcome = sent.completion().wait(Some(HANG_TIMEOUT)).unwrap();
                assert_eq!((outcome.bytes, outcome.copied), (size as u64, size as u64));
                let zero_copy = sent.report().by(Mechanism::MsgZerocopy);
                let is_zero_copy = zero_copy > 0;
                assert!(
                    !is_zero_copy || zero_copy == size as u64,
                    "{}",
                    sent.report()
                );
                // A zero-copy send completes with its notification, and a copied send completes
                // when the call returns.
                let expected_reason = if is_zero_copy {
                    FreeReason::Notification
                } else {
                    FreeReason::Copied
                };
                assert_eq!(outcome.reason, expected_reason);
                is_zero_copy
            };
            // After eight consecutive notifications that report a copy, the next 256 sends must use
            // `copy`.
            assert!((0..8).all(|_| send()), "zero-copy at first");
            assert!((0..256).all(|_| !send()), "copied for a while");
            assert!((0..8).all(|_| send()), "zero-copy again");
            assert!(!send(), "copied again");

            let report = sender.report();
            assert_eq!(report.kernel_copied(), 16 * size as u64);
            assert_eq!(report.zero_copy_bytes(), 0, "{report}");
            drop(sender);
            let received = peer.join().unwrap();
            assert_eq!(received.len(), sends * size);
            assert!(received.chunks(size).all(|chunk| chunk == pattern(size)));
        },
    );
}
