//! Receiving into an area of memory with io_uring, without a network card for it: the kernel
//! copies, but everything else is as with a network card. Linux has that since 7.1. On an older
//! kernel, each test asserts that the queue is refused, and why.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::thread::CapabilitySet;
use uncopied::zcrx::{Builder, Cause, Event, Queue};
use uncopied::{Errno, Mechanism, SendOptions, Sender};

use crate::harness::{HANG_TIMEOUT, expect_bytes, in_forked_child, pattern, wait_until};
use crate::sides::{in_one_guest, two_sides};
use crate::zcrx_cases::{
    self, BLOCK, Expected, TcpQueue, connection, next_chunk, send_blocks, without_capability,
};

const PAGE: usize = 4096;

/// Whether this kernel has queues without a device.
fn has_queues() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    println!("Linux {}", release.trim());
    !release.starts_with("6.12")
}

/// Runs `test` with a builder, on a kernel that has queues without a device. On an older kernel,
/// asserts that it refuses them.
fn with_queues(test: impl FnOnce(&Builder)) {
    in_one_guest(|| {
        let builder = Builder::without_device();
        if has_queues() {
            let registered = builder.register::<TcpStream>();
            drop(registered.expect("this kernel has such queues"));
            return test(&builder);
        }
        let refusal = builder.register::<TcpStream>().unwrap_err();
        assert_eq!(refusal.cause(), Cause::KernelTooOld, "{refusal}");
        assert_eq!(
            refusal.to_string(),
            "the kernel has no zero-copy receive: it needs Linux 6.15 or later \
             (Invalid argument (os error 22))"
        );
    });
}

#[test]
fn a_long_stream_arrives_unchanged_and_counts_as_copied() {
    with_queues(|builder| zcrx_cases::long_stream(builder, 64));
}

#[test]
fn nothing_more_arrives_while_chunks_hold_all_memory() {
    with_queues(zcrx_cases::held_chunks);
}

#[test]
fn chunks_are_dropped_in_random_order_by_another_thread() {
    with_queues(|builder| zcrx_cases::random_drops(builder, 6));
}

#[test]
fn several_sockets_share_a_queue() {
    with_queues(zcrx_cases::several_sockets);
}

#[test]
fn a_reset_ends_one_connection_only() {
    with_queues(zcrx_cases::reset);
}

#[test]
fn a_queue_that_waits_takes_no_cpu_time() {
    with_queues(zcrx_cases::idle);
}

#[test]
fn an_event_loop_waits_for_the_descriptor() {
    with_queues(zcrx_cases::event_loop);
}

/// Zero-copy receiving is switched off and on again in the middle of a stream.
#[test]
fn receiving_is_switched_off_in_the_middle_of_a_stream() {
    with_queues(|builder| {
        let mut queue: TcpQueue = builder.clone().area_bytes(64 * PAGE).register().unwrap();
        let (socket, peer) = connection();
        let id = queue.add(socket).unwrap();
        let blocks = 4;
        let sender = send_blocks(peer, 5, blocks);
        let mut expected = Expected::new(5);
        let mut on = true;
        let mut turns = 0;
        while let Some(chunk) = next_chunk(&mut queue) {
            expected.check(&chunk);
            if expected.bytes / (BLOCK / 4) > turns {
                turns += 1;
                on = !on;
                uncopied::set_zero_copy_receive(on);
            }
        }
        uncopied::set_zero_copy_receive(true);
        sender.join().unwrap();
        assert_eq!(expected.bytes, blocks as usize * BLOCK);
        let report = queue.report_of(id).unwrap();
        println!("{report}");
        assert!(report.switched_off(), "{report}");
        assert_eq!(report.bytes(), expected.bytes as u64);
        for mechanism in [Mechanism::Zcrx, Mechanism::Copy] {
            assert!(report.by(mechanism) > BLOCK as u64 / 2, "{report}");
        }
        assert_eq!(report.zero_copy_bytes(), 0, "{report}");
        assert!(report.fallbacks().is_empty(), "{report}");
    });
}

/// The kernel counts what it copies, other than bytes next to the headers of a packet.
#[test]
fn the_kernel_counts_what_it_copies() {
    with_queues(|builder| {
        let mut queue: TcpQueue = builder.register().unwrap();
        assert_eq!(queue.copied_by_kernel(), Some(0));
        let (socket, peer) = connection();
        queue.add(socket).unwrap();
        let sender = send_blocks(peer, 8, 1);
        while next_chunk(&mut queue).is_some() {}
        sender.join().unwrap();
        let copied = queue.copied_by_kernel().unwrap();
        println!("{copied} of {BLOCK} bytes");
        assert!(
            (BLOCK as u64 / 2..=BLOCK as u64).contains(&copied),
            "{copied}"
        );
    });
}

/// The virtual network card of the guests has no support for it.
#[test]
fn a_network_card_without_support_is_refused() {
    with_queues(|_| {
        let refusal = Builder::for_interface("eth0", 0).register::<TcpStream>();
        let refusal = refusal.unwrap_err();
        assert_eq!(refusal.cause(), Cause::NoDriverSupport, "{refusal}");
        assert!(
            refusal.to_string().contains("see `ethtool -i eth0`"),
            "{refusal}"
        );
    });
}

/// Without the capability `CAP_IPC_LOCK`, the area counts against the limit on locked memory.
#[test]
fn too_little_locked_memory_is_refused() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    with_queues(|builder| {
        let before = getrlimit(Resource::Memlock);
        let current = Some(64 << 10);
        setrlimit(Resource::Memlock, Rlimit { current, ..before }).unwrap();
        let refusal = without_capability(CapabilitySet::IPC_LOCK, || {
            builder.register::<TcpStream>().unwrap_err()
        });
        setrlimit(Resource::Memlock, before).unwrap();
        assert_eq!(refusal.cause(), Cause::NoMemory, "{refusal}");
        assert!(refusal.to_string().contains("ulimit -l"), "{refusal}");
    });
}

/// Even a queue without a device needs the capability `CAP_NET_ADMIN`.
#[test]
fn a_process_without_permission_is_refused() {
    with_queues(|builder| {
        let refusal = without_capability(CapabilitySet::NET_ADMIN, || {
            builder.register::<TcpStream>().unwrap_err()
        });
        assert_eq!(refusal.cause(), Cause::NoPermission, "{refusal}");
        assert!(refusal.to_string().contains("CAP_NET_ADMIN"), "{refusal}");
    });
}

#[test]
fn a_dropped_chunk_wakes_an_event_loop() {
    with_queues(zcrx_cases::event_loop_starved);
}

/// The kernel ends a request whenever the completion queue is full, and keeps the end itself until
/// there is room.
#[test]
fn a_completion_queue_that_is_too_small_loses_nothing() {
    with_queues(|builder| {
        for entries in [1, 2, 8] {
            let builder = builder.clone().completion_entries(entries);
            let mut queue: TcpQueue = builder.register().unwrap();
            let mut senders = Vec::new();
            let mut sockets = Vec::new();
            for number in 0..3 {
                let (socket, peer) = connection();
                senders.push(send_blocks(peer, number, 1));
                sockets.push((socket, number));
            }
            let mut expected = Vec::new();
            for (socket, number) in sockets {
                // Each connection has something to receive before the first one is added.
                socket.peek(&mut [0]).unwrap();
                expected.push((queue.add(socket).unwrap(), Expected::new(number)));
            }
            let mut ended = 0;
            while ended < expected.len() {
                match zcrx_cases::next(&mut queue) {
                    (id, Event::Chunk(chunk)) => {
                        let of_id = expected.iter_mut().find(|it| it.0 == id);
                        of_id.unwrap().1.check(&chunk);
                        // No connection gets all of the queue.
                        let bytes = expected.iter().map(|(_, it)| it.bytes);
                        let (least, most) = (bytes.clone().min(), bytes.max());
                        assert!(
                            least > Some(0) || most < Some(BLOCK / 2),
                            "{least:?} {most:?}"
                        );
                    }
                    (_, Event::End) => ended += 1,
                    (_, Event::Failed(error)) => panic!("{error}"),
                }
            }
            assert!(expected.iter().all(|(_, it)| it.bytes == BLOCK));
            for sender in senders {
                sender.join().unwrap();
            }
        }
    });
}

/// Only plain TCP can be received without copying. Others are received from with ordinary calls.
#[test]
fn a_unix_socket_falls_back_to_copying() {
    with_queues(|builder| {
        let mut queue: Queue<OwnedFd> = builder.register().unwrap();
        let (socket, mut peer) = UnixStream::pair().unwrap();
        let id = queue.add(socket.into()).unwrap();
        peer.write_all(b"over Unix").unwrap();
        drop(peer);
        match queue.receive(Some(HANG_TIMEOUT)).unwrap() {
            Some((of, Event::Chunk(chunk))) => {
                assert_eq!((of, &chunk[..]), (id, &b"over Unix"[..]));
                assert_eq!(chunk.mechanism(), Mechanism::Copy);
            }
            event => panic!("{event:?}"),
        }
        let event = queue.receive(Some(HANG_TIMEOUT)).unwrap();
        assert!(matches!(event, Some((_, Event::End))), "{event:?}");
        let report = queue.report_of(id).unwrap();
        let fallback = report.fallbacks()[0];
        assert_eq!(
            (fallback.from, fallback.to),
            (Mechanism::Zcrx, Mechanism::Copy)
        );
        let expected = Errno::from_raw_os_error(libc::EPROTONOSUPPORT);
        assert_eq!((fallback.errno, fallback.at), (expected, 0), "{report}");
    });
}

/// The chunks keep their bytes when the queue is gone, and what arrives later stays in the socket.
#[test]
fn chunks_outlive_their_queue() {
    with_queues(|builder| {
        let before = Resources::with_nothing_pinned();
        let (mut socket, mut peer) = connection();
        let mut queue: Queue<&TcpStream> = builder.register().unwrap();
        queue.add(&socket).unwrap();
        let bytes = pattern(8 * PAGE);
        peer.write_all(&bytes).unwrap();
        let mut chunks = Vec::new();
        let mut received = 0;
        while received < bytes.len() {
            match queue.receive(Some(HANG_TIMEOUT)).unwrap() {
                Some((_, Event::Chunk(chunk))) => {
                    received += chunk.len();
                    chunks.push(chunk);
                }
                event => panic!("{event:?}"),
            }
        }
        assert_eq!(permissions_of(&chunks[0]), "r--p");
        drop(queue);
        // The kernel has stopped to receive into the area.
        peer.write_all(b"afterwards").unwrap();
        expect_bytes(&mut socket, b"afterwards");
        assert_eq!(
            chunks.iter().flat_map(|it| it.to_vec()).collect::<Vec<_>>(),
            bytes
        );
        assert!(Resources::now().pinned_kib > before.pinned_kib);
        // The last chunk is dropped in another thread, which closes the ring.
        let last = chunks.pop().unwrap();
        drop(chunks);
        assert!(Resources::now().pinned_kib > before.pinned_kib);
        std::thread::spawn(move || drop(last)).join().unwrap();
        drop((socket, peer));
        before.wait_until_regained();
    });
}

#[test]
fn chunks_are_sent_on_by_the_thread_that_receives() {
    with_queues(zcrx_cases::sent_on);
}

/// Chunks are sent on to another machine with `MSG_ZEROCOPY`, which does not copy them. So each is
/// read by the network card until the peer has acknowledged it, while the rest of the area is used
/// for other bytes.
#[test]
fn chunks_in_flight_are_not_overwritten() {
    const BLOCKS: u32 = 4;
    two_sides(
        |onward| {
            with_queues(|builder| {
                let mut queue: TcpQueue =
                    builder.clone().area_bytes(128 * PAGE).register().unwrap();
                let (socket, peer) = connection();
                queue.add(socket).unwrap();
                let first = send_blocks(peer, 10, BLOCKS);
                let options = SendOptions::default().force_mechanisms(&[Mechanism::MsgZerocopy]);
                let mut sender = Sender::with(onward, options);
                let mut completions = Vec::new();
                while let Some(chunk) = next_chunk(&mut queue) {
                    completions.push(sender.send(chunk).unwrap().into_completion());
                }
                first.join().unwrap();
                for completion in completions {
                    let outcome = completion.wait(Some(HANG_TIMEOUT)).unwrap();
                    assert_eq!(outcome.copied, 0);
                }
                println!("{}", sender.report());
            });
        },
        |mut from| {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).unwrap();
            // Without a queue, the other side sends nothing.
            if !has_queues() {
                return assert_eq!(bytes.len(), 0);
            }
            let mut expected = Expected::new(10);
            expected.check(&bytes);
            assert_eq!(expected.bytes, BLOCKS as usize * BLOCK);
        },
    );
}

/// A forked child reads its parent's chunks, and drops them, without an effect on the parent.
#[test]
fn a_forked_child_leaves_the_queue_of_its_parent_alone() {
    with_queues(|builder| {
        let mut queue: TcpQueue = builder.clone().area_bytes(4 * PAGE).register().unwrap();
        let (socket, mut peer) = connection();
        queue.add(socket).unwrap();
        peer.write_all(&[1; 100]).unwrap();
        let mut chunk = next_chunk(&mut queue);
        let mut queue = Some(queue);
        in_forked_child(|| {
            assert_eq!(chunk.as_deref(), Some(&[1; 100][..]));
            let mut inherited = queue.take().unwrap();
            let error = inherited.receive(None).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
            let error = inherited.add(connection().0).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
            drop(chunk.take());
            drop(inherited);
        });
        let mut queue = queue.unwrap();
        // More than the area has: if the child's drop had given the memory back, the parent's chunk
        // would be overwritten.
        let sender = send_blocks(peer, 7, 1);
        let mut expected = Expected::new(7);
        while let Some(chunk) = next_chunk(&mut queue) {
            expected.check(&chunk);
        }
        sender.join().unwrap();
        assert_eq!(expected.bytes, BLOCK);
        assert_eq!(chunk.as_deref(), Some(&[1; 100][..]));
    });
}

/// A chunk that became `Bytes` is shared and sliced like others.
#[test]
fn a_chunk_becomes_bytes() {
    with_queues(|builder| {
        let mut queue: TcpQueue = builder.register().unwrap();
        let (socket, mut peer) = connection();
        queue.add(socket).unwrap();
        peer.write_all(b"header, payload").unwrap();
        let bytes = Bytes::from(next_chunk(&mut queue).unwrap());
        drop(queue);
        assert_eq!(bytes.slice(8..), "payload");
    });
}

/// Queues come and go, with and without bytes that were received, chunks that outlive them, and
/// sockets that are still receiving.
#[test]
fn queues_leak_nothing() {
    with_queues(|builder| {
        let round = |index: u32| {
            let builder = builder.clone().area_bytes(128 * PAGE);
            let mut queue: TcpQueue = builder.register().unwrap();
            let (socket, mut peer) = connection();
            queue.add(socket).unwrap();
            peer.write_all(&pattern(20 * PAGE)).unwrap();
            let mut held = Vec::new();
            for _ in 0..index % 4 {
                held.extend(next_chunk(&mut queue));
            }
            drop(queue);
            drop(held);
        };
        (0..4).for_each(round);
        let before = Resources::with_nothing_pinned();
        (0..40).for_each(round);
        before.wait_until_regained();
    });
}

/// Returns how this process may access the memory of `bytes`, as `/proc/self/maps` says it.
fn permissions_of(bytes: &[u8]) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let address = bytes.as_ptr().addr();
    let mapping = maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let start = usize::from_str_radix(start, 16).unwrap();
        let end = usize::from_str_radix(end, 16).unwrap();
        (start..end).contains(&address).then_some(rest)
    });
    mapping.unwrap()[..4].to_owned()
}

/// What this process holds.
#[derive(Clone, Copy, Debug)]
struct Resources {
    descriptors: usize,
    mappings: usize,
    pinned_kib: u64,
    resident_kib: u64,
}

impl Resources {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.unwrap().trim().trim_end_matches(" kB");
            number.parse().unwrap()
        };
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        Self {
            descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
            mappings: maps.lines().count(),
            pinned_kib: kib("VmPin:"),
            resident_kib: kib("VmRSS:"),
        }
    }

    /// Waits until the kernel has released the areas of earlier queues, which it does later.
    fn with_nothing_pinned() -> Self {
        wait_until("no area is left", || Self::now().pinned_kib == 0);
        Self::now()
    }

    /// Waits until the process holds no more than it did: the kernel releases some of it later. The
    /// allocator and the stacks of threads may take a few mappings and some memory.
    fn wait_until_regained(self) {
        let began = Instant::now();
        loop {
            let now = Self::now();
            let is_regained = now.descriptors <= self.descriptors
                && now.pinned_kib <= self.pinned_kib
                && now.mappings <= self.mappings + 10
                && now.resident_kib <= self.resident_kib + (8 << 10);
            if is_regained {
                return;
            }
            assert!(began.elapsed() < HANG_TIMEOUT, "{now:?} after {self:?}");
            sleep(Duration::from_millis(20));
        }
    }
}
