//! Queues that receive from several sockets on this machine, which has no network card for them:
//! why they are refused, and how they receive instead. `lab/test` runs them with kernels that have
//! queues without a device.

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::thread::CapabilitySet;
use uncopied::zcrx::{Builder, Cause, Event, Queue};
use uncopied::{Errno, Mechanism};

use crate::harness::{HANG_TIMEOUT, in_child};
use crate::zcrx_cases::{self, TcpQueue, connection, without_capability};

/// A builder of queues that are refused everywhere.
fn refused() -> Builder {
    Builder::for_interface("lo", 0)
}

/// Whether this process may register queues.
fn is_permitted() -> bool {
    const CAP_NET_ADMIN: u32 = 12;
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|it| it.strip_prefix("CapEff:"));
    let effective = u64::from_str_radix(effective.unwrap().trim(), 16).unwrap();
    effective & (1 << CAP_NET_ADMIN) != 0
}

/// `lo` has no receive queues that could be registered.
#[test]
fn the_loopback_interface_is_refused_in_words() {
    let refusal = refused().register::<TcpStream>().unwrap_err();
    println!("{refusal}");
    let said = refusal.to_string();
    match refusal.cause() {
        Cause::NoDriverSupport if is_permitted() => {
            assert_eq!(refusal.errno(), Some(Errno::OPNOTSUPP));
            let expected = "the driver of lo does not support zero-copy receive: \
                            see `ethtool -i lo` (Operation not supported (os error 95))";
            assert_eq!(said, expected);
        }
        Cause::NoPermission if !is_permitted() => {
            assert_eq!(refusal.errno(), Some(Errno::PERM));
            assert!(said.contains("give it CAP_NET_ADMIN"), "{said}");
        }
        Cause::KernelTooOld => assert!(said.contains("Linux 6.15"), "{said}"),
        Cause::NotBuiltIn => assert!(said.contains("CONFIG_IO_URING_ZCRX"), "{said}"),
        Cause::IoUringForbidden => assert!(said.contains("io_uring_disabled"), "{said}"),
        _ => panic!("{refusal:?}: {said}"),
    }
}

/// Linux has queues without a device since 7.1.
#[test]
fn a_queue_without_a_device_receives_or_is_refused_in_words() {
    let builder = Builder::without_device();
    match builder.register::<TcpStream>() {
        Ok(queue) => {
            assert_eq!(queue.refusal(), None);
            zcrx_cases::long_stream(&builder, 4);
        }
        Err(refusal) => {
            println!("{refusal}");
            let said = refusal.to_string();
            let expected = match refusal.cause() {
                Cause::NeedsDevice => {
                    assert_eq!(refusal.errno(), Some(Errno::INVAL));
                    "it needs Linux 7.1 or later, or the queue of a network card"
                }
                Cause::NoPermission if !is_permitted() => "CAP_NET_ADMIN",
                Cause::KernelTooOld => "Linux 6.15",
                Cause::NotBuiltIn => "CONFIG_IO_URING_ZCRX",
                Cause::IoUringForbidden => "io_uring_disabled",
                _ => panic!("{refusal:?}: {said}"),
            };
            assert!(said.contains(expected), "{said}");
        }
    }
}

/// The permission is checked before anything else, if the kernel knows the operation at all.
#[test]
fn a_thread_without_permission_is_refused_in_words() {
    let refusal = without_capability(CapabilitySet::NET_ADMIN, || {
        refused().register::<TcpStream>().unwrap_err()
    });
    let said = refusal.to_string();
    match refusal.cause() {
        Cause::NoPermission => assert_eq!(
            said,
            "the process may not register a receive queue: give it CAP_NET_ADMIN \
             (Operation not permitted (os error 1))"
        ),
        Cause::KernelTooOld | Cause::NotBuiltIn | Cause::IoUringForbidden => println!("{said}"),
        _ => panic!("{refusal:?}: {said}"),
    }
}

#[test]
fn an_interface_that_does_not_exist_is_refused() {
    for name in [
        "no-such-card",
        "a name that is longer than any of Linux",
        "",
    ] {
        let refusal = Builder::for_interface(name, 3)
            .register::<TcpStream>()
            .unwrap_err();
        assert_eq!(refusal.cause(), Cause::NoSuchInterface, "{refusal}");
        assert_eq!(refusal.errno(), Some(Errno::NODEV), "{refusal}");
        assert!(refusal.to_string().contains(name));
    }
}

#[test]
fn sizes_that_cannot_be_used_are_refused() {
    for builder in [
        refused().area_bytes(0),
        refused().refill_entries(0),
        refused().refill_entries(32_769),
        refused().completion_entries(0),
        refused().completion_entries(65_537),
    ] {
        let refusal = builder.register::<TcpStream>().unwrap_err();
        assert_eq!(refusal.cause(), Cause::InvalidSizes, "{refusal}");
        let error = std::io::Error::from(refusal);
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    }
}

#[test]
fn without_descriptors_no_queue_is_created() {
    in_child(
        "zcrx::without_descriptors_no_queue_is_created",
        |_| {},
        || {
            use rustix::process::{Resource, Rlimit, setrlimit};
            let limit = Rlimit {
                current: Some(0),
                maximum: Some(0),
            };
            setrlimit(Resource::Nofile, limit).unwrap();
            let refusal = refused().register::<TcpStream>().unwrap_err();
            assert_eq!(refusal.cause(), Cause::NoDescriptor, "{refusal}");
            assert!(refusal.to_string().contains("ulimit -n"));
            assert!(refused().register_or_copy::<TcpStream>().is_err());
        },
    );
}

#[test]
fn a_refused_queue_copies_a_long_stream() {
    zcrx_cases::long_stream(&refused(), 32);
}

#[test]
fn a_refused_queue_waits_while_chunks_hold_all_memory() {
    zcrx_cases::held_chunks(&refused());
}

#[test]
fn chunks_of_a_refused_queue_are_dropped_in_random_order() {
    zcrx_cases::random_drops(&refused(), 16);
}

#[test]
fn several_sockets_share_a_refused_queue() {
    zcrx_cases::several_sockets(&refused());
}

#[test]
fn a_reset_ends_one_connection_of_a_refused_queue_only() {
    zcrx_cases::reset(&refused());
}

#[test]
fn a_refused_queue_that_waits_takes_no_cpu_time() {
    zcrx_cases::idle(&refused());
}

#[test]
fn an_event_loop_waits_for_the_descriptor_of_a_refused_queue() {
    zcrx_cases::event_loop(&refused());
}

#[test]
fn chunks_of_a_refused_queue_are_sent_on_by_the_thread_that_receives() {
    zcrx_cases::sent_on(&refused());
}

#[test]
fn a_dropped_chunk_wakes_the_event_loop_of_a_refused_queue() {
    zcrx_cases::event_loop_starved(&refused());
}

/// The switch is that of the process, so this runs in a process of its own.
#[test]
fn switching_zero_copy_receiving_off_refuses_queues() {
    in_child(
        "zcrx::switching_zero_copy_receiving_off_refuses_queues",
        |child| {
            child.env("UNCOPIED_RECEIVE", "off");
        },
        || {
            let refusal = refused().register::<TcpStream>().unwrap_err();
            assert_eq!(refusal.cause(), Cause::SwitchedOff);
            assert_eq!(refusal.errno(), None);
            let mut queue: TcpQueue = refused().register_or_copy().unwrap();
            assert_eq!(queue.refusal(), Some(&refusal));
            let (socket, mut peer) = connection();
            let id = queue.add(socket).unwrap();
            peer.write_all(b"copied").unwrap();
            let (_, event) = zcrx_cases::next(&mut queue);
            assert!(matches!(&event, Event::Chunk(chunk) if chunk[..] == *b"copied"));
            for report in [queue.report(), queue.report_of(id).unwrap()] {
                assert_eq!(report.by(Mechanism::Copy), 6, "{report}");
                assert!(report.switched_off());
                let expected = "6 bytes: copy 6 (zero-copy receiving is switched off)";
                assert_eq!(report.to_string(), expected);
            }
            // The queue stays as it is.
            uncopied::set_zero_copy_receive(true);
            peer.write_all(b"!").unwrap();
            let (_, event) = zcrx_cases::next(&mut queue);
            assert!(matches!(&event, Event::Chunk(chunk) if chunk[..] == *b"!"));
            assert_eq!(queue.report().by(Mechanism::Copy), 7);
        },
    );
}

#[test]
fn a_refused_queue_receives_from_unix_sockets() {
    let mut queue: Queue<OwnedFd> = refused().register_or_copy().unwrap();
    let (socket, mut peer) = UnixStream::pair().unwrap();
    let id = queue.add(socket.into()).unwrap();
    assert!(queue.receive(Some(Duration::ZERO)).unwrap().is_none());
    peer.write_all(b"over Unix").unwrap();
    drop(peer);
    match queue.receive(Some(HANG_TIMEOUT)).unwrap() {
        Some((of, Event::Chunk(chunk))) => {
            assert_eq!((of, &chunk[..]), (id, &b"over Unix"[..]));
        }
        event => panic!("{event:?}"),
    }
    let event = queue.receive(Some(HANG_TIMEOUT)).unwrap();
    assert!(matches!(event, Some((_, Event::End))), "{event:?}");
    assert!(queue.receive(None).unwrap().is_none());
}

#[test]
fn only_stream_sockets_are_added() {
    let mut queue: Queue<OwnedFd> = refused().register_or_copy().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let error = queue.add(file.into()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = queue.add(datagrams.into()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPROTOTYPE));
    assert!(queue.receive(None).unwrap().is_none());
}

/// A chunk holds no more memory than its bytes need, so that many small ones can be held.
#[test]
fn small_chunks_of_a_refused_queue_hold_little_memory() {
    let mut queue: TcpQueue = refused().area_bytes(256 << 10).register_or_copy().unwrap();
    let (socket, mut peer) = connection();
    queue.add(socket).unwrap();
    let mut held = Vec::new();
    for _ in 0..1000 {
        peer.write_all(b"a small message").unwrap();
        held.extend(zcrx_cases::next_chunk(&mut queue));
    }
    assert_eq!(held.len(), 1000);
    assert!(!queue.is_starved());
}
