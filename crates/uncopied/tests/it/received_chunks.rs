//! Chunks that were received: held and dropped in any order, sent on, written to files, and kept
//! longer than their receiver and their socket.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;

use proptest::prelude::*;
use uncopied::{
    Chunk, ChunkPart, MapObstacle, Mechanism, ReceiveOptions, Receiver, SendOptions, Sender,
};

use crate::harness::{
    expect_bytes, expect_eof, in_child, in_forked_child, in_network_namespace, pattern,
    pattern_pages, skip,
};
use crate::receiving::{mapping, page_pair, zero_copy_sender};

const MIB: usize = 1 << 20;

/// A send of the peer.
#[derive(Clone, Copy, Debug)]
struct PeerSend {
    bytes: usize,
    is_zero_copy: bool,
}

fn peer_send() -> impl Strategy<Value = PeerSend> {
    let bytes = prop_oneof![
        1..100_usize,
        1..20_000_usize,
        (1..40_usize).prop_map(|pages| pages * 4096),
        1..300_000_usize,
    ];
    (bytes, prop::bool::weighted(0.8)).prop_map(|(bytes, is_zero_copy)| PeerSend {
        bytes,
        is_zero_copy,
    })
}

/// What the program does after it has received a chunk.
#[derive(Clone, Copy, Debug)]
enum Action {
    /// Drops the chunk that it has held for the longest time.
    DropOldest,
    /// Drops the chunk that it has just received.
    DropNewest,
    /// Keeps one part of the oldest chunk.
    KeepPart,
    /// Keeps everything.
    Keep,
}

fn action() -> impl Strategy<Value = Action> {
    prop::sample::select(vec![
        Action::DropOldest,
        Action::DropOldest,
        Action::DropNewest,
        Action::KeepPart,
        Action::Keep,
    ])
}

/// Bytes that the program holds, and their position in the stream.
struct Held {
    at: usize,
    chunk: Chunk,
}

impl Held {
    fn check(&self, stream: &[u8]) {
        let mut at = self.at;
        for part in &self.chunk {
            let mut bytes = vec![0; part.len()];
            assert_eq!(part.copy_to_slice(&mut bytes), bytes.len());
            assert!(bytes == stream[at..at + bytes.len()], "wrong bytes at {at}");
            at += bytes.len();
        }
    }
}

/// Sends 1 MiB, and receives it meanwhile: the buffers of the sockets need not hold all of it.
fn send_and_receive(
    sender: &mut Sender<TcpStream>,
    receiver: &mut Receiver<TcpStream>,
) -> Vec<Chunk> {
    thread::scope(|scope| {
        scope.spawn(|| sender.send(pattern_pages(MIB)).unwrap());
        receive_bytes(receiver, MIB)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Whatever the peer sends, and however long the chunks are kept, every chunk has the bytes
    /// that were sent, for as long as it is held.
    #[test]
    fn every_chunk_keeps_its_bytes(
        sends in prop::collection::vec(peer_send(), 1..20),
        actions in prop::collection::vec(action(), 1..20),
        chunk_pages in 1..40_usize,
        max_held in 0..5_usize,
        force in any::<bool>(),
    ) {
        let len = sends.iter().map(|send| send.bytes).sum();
        let stream = pattern(len);
        let (socket, peer) = page_pair();
        let sending = thread::spawn({
            let stream = stream.clone();
            move || {
                let mut sender = zero_copy_sender(peer);
                let mut at = 0;
                for send in sends {
                    let bytes = &stream[at..at + send.bytes];
                    match send.is_zero_copy {
                        true => drop(sender.send(bytes.to_vec()).unwrap()),
                        false => sender.get_ref().write_all(bytes).unwrap(),
                    }
                    at += send.bytes;
                }
            }
        });
        let options = match force {
            true => mapping(),
            false => ReceiveOptions::default(),
        };
        let options = options.chunk_bytes(chunk_pages * 4096).max_held_chunks(max_held);
        let mut receiver = Receiver::with(socket, options);
        let (mut held, mut at) = (VecDeque::new(), 0);
        let mut parts = Vec::new();
        let mut actions = actions.iter().cycle();
        while let Some(chunk) = receiver.receive().unwrap() {
            let received = Held { at, chunk };
            at += received.chunk.len();
            received.check(&stream);
            held.push_back(received);
            match actions.next().unwrap() {
                Action::DropOldest => drop(held.pop_front()),
                Action::DropNewest => drop(held.pop_back()),
                Action::KeepPart => {
                    if let Some(oldest) = held.pop_front() {
                        let (at, part) = (oldest.at, oldest.chunk.parts()[0].clone());
                        parts.push((at, part));
                    }
                }
                Action::Keep => {}
            }
            held.iter().for_each(|it| it.check(&stream));
        }
        prop_assert_eq!(at, len);
        sending.join().unwrap();
        drop(receiver);
        held.iter().for_each(|it| it.check(&stream));
        for (at, part) in parts {
            let mut bytes = vec![0; part.len()];
            part.copy_to_slice(&mut bytes);
            prop_assert!(bytes == stream[at..at + bytes.len()]);
        }
    }
}

/// Receives until `bytes` have arrived.
fn receive_bytes(receiver: &mut Receiver<TcpStream>, bytes: usize) -> Vec<Chunk> {
    let (mut chunks, mut received) = (Vec::new(), 0);
    while received < bytes {
        let chunk = receiver.receive().unwrap().unwrap();
        received += chunk.len();
        chunks.push(chunk);
    }
    chunks
}

fn mapped_bytes(chunks: &[Chunk]) -> usize {
    chunks.iter().map(Chunk::mapped_bytes).sum()
}

#[test]
fn while_too_many_chunks_are_held_bytes_are_copied() {
    let (socket, peer) = page_pair();
    let mut sender = zero_copy_sender(peer);
    let pages = pattern_pages(64 << 10);
    let options = mapping().chunk_bytes(64 << 10).max_held_chunks(2);
    let mut receiver = Receiver::with(socket, options);
    let mut round = |receiver: &mut Receiver<TcpStream>| {
        sender.send(&pages).unwrap();
        receive_bytes(receiver, 64 << 10)
    };
    let (first, second) = (round(&mut receiver), round(&mut receiver));
    assert!(mapped_bytes(&first) > 0 && mapped_bytes(&second) > 0);
    let mut held = vec![first, second];
    // The chunks of a round may share the limit unevenly, so fill it.
    let third = loop {
        let next = round(&mut receiver);
        if mapped_bytes(&next) == 0 {
            break next;
        }
        held.push(next);
    };
    let text = receiver.report().to_string();
    assert!(text.contains("map_receive fell back to copy"), "{text}");
    assert_eq!(receiver.map_obstacle(), Some(MapObstacle::ChunksHeld));
    drop(held);
    assert!(mapped_bytes(&round(&mut receiver)) > 0, "mapped again");
    assert_ne!(receiver.map_obstacle(), Some(MapObstacle::ChunksHeld));
    drop(third);
}

/// Returns the number of windows of a socket, and how many bytes are mapped in them.
fn windows(socket: &impl AsFd) -> (usize, usize) {
    let inode = rustix::fs::fstat(socket).unwrap().st_ino;
    let name = format!("socket:[{inode}]");
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut windows, mut kib, mut is_window) = (0, 0, false);
    for line in maps.lines() {
        // Only the first line of a mapping does not begin with a name and a colon.
        if !line.split(' ').next().unwrap().ends_with(':') {
            is_window = line.ends_with(&name);
            windows += usize::from(is_window);
        }
        if is_window && let Some(rest) = line.strip_prefix("Rss:") {
            kib += rest
                .trim()
                .trim_end_matches(" kB")
                .parse::<usize>()
                .unwrap();
        }
    }
    (windows, kib << 10)
}

#[test]
fn dropped_chunks_give_their_pages_back_and_windows_are_used_again() {
    let (socket, peer) = page_pair();
    let mut sender = zero_copy_sender(peer);
    let mut receiver = Receiver::with(socket, mapping());
    for _ in 0..10 {
        sender.send(pattern_pages(64 << 10)).unwrap();
        let chunks = receive_bytes(&mut receiver, 64 << 10);
        assert_eq!(windows(receiver.get_ref()).1, mapped_bytes(&chunks));
        drop(chunks);
        assert_eq!(windows(receiver.get_ref()).1, 0, "pages are kept");
    }
    let used = windows(receiver.get_ref()).0;
    assert!((1..=4).contains(&used), "{used} windows");
}

#[test]
fn exactly_the_allowed_number_of_chunks_is_held() {
    for max in 0..3 {
        let (socket, peer) = page_pair();
        let mut sender = zero_copy_sender(peer);
        let options = mapping().chunk_bytes(4096).max_held_chunks(max);
        let mut receiver = Receiver::with(socket, options);
        sender.send(pattern_pages(64 << 10)).unwrap();
        let held = receive_bytes(&mut receiver, 64 << 10);
        let mapped = held.iter().filter(|chunk| chunk.mapped_bytes() > 0);
        assert_eq!(mapped.count(), max);
    }
}

/// Chunks outlive their receiver and their socket. The peer sees the end of the stream once the
/// last of them is dropped, or once the socket is shut down.
#[test]
fn a_chunk_outlives_its_receiver_and_its_socket() {
    for shuts_down in [false, true] {
        let (socket, peer) = page_pair();
        let mut sender = zero_copy_sender(peer);
        let mut receiver = Receiver::with(socket, mapping());
        let mut chunks = send_and_receive(&mut sender, &mut receiver);
        assert!(mapped_bytes(&chunks) > 0);
        let mut socket = receiver.into_inner();
        socket.write_all(b"the end").unwrap();
        if shuts_down {
            socket.shutdown(Shutdown::Both).unwrap();
        }
        drop(socket);
        let mut peer = sender.get_ref();
        expect_bytes(&mut peer, b"the end");
        let received: Vec<u8> = chunks.iter().flat_map(Chunk::to_vec).collect();
        assert!(received == pattern(MIB));
        if !shuts_down {
            peer.set_nonblocking(true).unwrap();
            let error = peer.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "still open");
            peer.set_nonblocking(false).unwrap();
            chunks.clear();
        }
        expect_eof(&mut peer);
    }
}

/// The chain from a socket to another socket: what was received is sent on without a copy, while
/// the receiver goes on.
#[test]
fn chunks_can_be_sent_on_by_every_mechanism() {
    const SENDS: usize = 24;
    for mechanism in Mechanism::MEMORY_TO_SOCKET {
        let (from, peer) = page_pair();
        let (mut target, to) = page_pair();
        let sending = thread::spawn(|| {
            let mut sender = zero_copy_sender(peer);
            let pages = pattern_pages(MIB);
            for _ in 0..SENDS {
                sender.send(&pages).unwrap();
            }
        });
        let reading = thread::spawn(move || {
            for _ in 0..SENDS {
                expect_bytes(&mut target, &pattern(MIB));
            }
            expect_eof(&mut target);
        });
        let mut receiver = Receiver::with(from, mapping());
        let options = SendOptions::default().force_mechanisms(&[mechanism, Mechanism::Copy]);
        let mut sender = Sender::with(to, options);
        while let Some(chunk) = receiver.receive().unwrap() {
            sender.send_parts(chunk).unwrap();
        }
        let report = sender.report();
        drop(sender);
        sending.join().unwrap();
        reading.join().unwrap();
        let all = (SENDS * MIB) as u64;
        assert!(receiver.report().by(Mechanism::MapReceive) > all / 10);
        assert!(report.by(mechanism) > all / 2, "{report}");
    }
}

/// Without a forced mechanism, whole received pages are sent on with `vmsplice`, as permanent pages
/// are, and bytes that do not begin at the start of a page are copied.
#[test]
fn the_plan_sends_whole_received_pages_on_without_a_copy() {
    let (from, peer) = page_pair();
    let (target, to) = page_pair();
    let mut peer = zero_copy_sender(peer);
    peer.send(pattern_pages(256 << 10)).unwrap();
    let mut receiver = Receiver::with(from, mapping().low_water_mark(128 << 10));
    let chunk = receiver.receive().unwrap().unwrap();
    let ChunkPart::Mapped(pages) = &chunk.parts()[0] else {
        panic!("copied: {chunk:?}");
    };
    let reading = thread::spawn(move || std::io::copy(&mut &target, &mut std::io::sink()));
    let mut sender = Sender::new(to);
    for (start, mechanism) in [(0, Mechanism::Vmsplice), (1, Mechanism::Copy)] {
        let sent = sender.send(pages.slice(start..start + (64 << 10))).unwrap();
        assert_eq!(sent.report().by(mechanism), 64 << 10, "{}", sent.report());
    }
    drop(sender);
    assert_eq!(reading.join().unwrap().unwrap(), 128 << 10);
}

#[test]
fn parts_are_sliced_and_copied() {
    let (socket, peer) = page_pair();
    let mut sender = zero_copy_sender(peer);
    sender.send(pattern_pages(64 << 10)).unwrap();
    let mut receiver = Receiver::with(socket, mapping());
    let chunks = receive_bytes(&mut receiver, 64 << 10);
    let mut at = 0;
    for part in chunks.iter().flatten() {
        let expected = &pattern(64 << 10)[at..at + part.len()];
        at += part.len();
        let ChunkPart::Mapped(pages) = part else {
            continue;
        };
        for (start, end) in [(0, 1), (1, 9), (7, 8), (3, 4000), (4095, 4096), (0, 4096)] {
            let slice = pages.slice(start..end);
            assert_eq!((slice.len(), slice.is_empty()), (end - start, false));
            assert!(slice.to_vec() == expected[start..end], "{start}..{end}");
            let mut few = [0; 3];
            let copied = slice.copy_to_slice(&mut few);
            assert_eq!(few[..copied], expected[start..end][..copied]);
            // SAFETY: the peer is in this process, and has sent memory that never changes.
            assert!(unsafe { slice.as_slice() } == &expected[start..end]);
            assert!(!format!("{slice:?}").is_empty());
        }
        assert!(pages.slice(4..4).is_empty() && !part.is_empty());
        assert!(ChunkPart::Mapped(pages.slice(4..4)).is_empty());
        assert!(pages.slice(4..4).to_vec().is_empty());
    }
    // SAFETY: as above.
    let slices = chunks.iter().flat_map(|chunk| unsafe { chunk.slices() });
    assert!(slices.collect::<Vec<_>>().concat() == pattern(64 << 10));
}

/// The chain from a socket to a disk: the device reads the bytes from the received pages.
#[test]
fn mapped_pages_are_written_to_a_file_with_o_direct() {
    let name = "received_chunks::mapped_pages_are_written_to_a_file_with_o_direct";
    let folder = std::env::current_dir().unwrap();
    let path = tempfile::NamedTempFile::new_in(folder).unwrap();
    let mut options = OpenOptions::new();
    let direct = options.write(true).custom_flags(libc::O_DIRECT);
    let Ok(direct) = direct.open(path.path()) else {
        return skip(name, "needs a file system with O_DIRECT");
    };
    let (socket, peer) = page_pair();
    let mut sender = zero_copy_sender(peer);
    let mut receiver = Receiver::with(socket, mapping());
    let buffered = File::options().write(true).open(path.path()).unwrap();
    let (mut at, mut direct_bytes) = (0, 0);
    for chunk in send_and_receive(&mut sender, &mut receiver) {
        for part in chunk {
            if at % 4096 == 0 && matches!(part, ChunkPart::Mapped(_)) {
                part.write_at(&direct, at).unwrap();
                direct_bytes += part.len();
            } else {
                part.write_at(&buffered, at).unwrap();
            }
            at += part.len() as u64;
        }
    }
    assert!(direct_bytes > MIB / 2, "{direct_bytes}");
    let mut written = vec![0; MIB];
    File::open(path.path())
        .unwrap()
        .read_exact_at(&mut written, 0)
        .unwrap();
    assert!(written == pattern(MIB));
}

#[test]
fn a_whole_chunk_is_written_to_a_file() {
    const LEN: usize = (256 << 10) + 77;
    let (socket, peer) = page_pair();
    let mut sender = zero_copy_sender(peer);
    sender.send(pattern(LEN)).unwrap();
    let mut receiver = Receiver::with(socket, mapping());
    let file = tempfile::tempfile().unwrap();
    let mut at = 5;
    for chunk in receive_bytes(&mut receiver, LEN) {
        chunk.write_at(&file, at).unwrap();
        at += chunk.len() as u64;
    }
    let mut written = vec![0; LEN];
    file.read_exact_at(&mut written, 5).unwrap();
    assert!(written == pattern(LEN));
    let read_only = File::open("Cargo.toml").unwrap();
    sender.send(b"more").unwrap();
    let chunk = receiver.receive().unwrap().unwrap();
    assert!(chunk.write_at(&read_only, 0).is_err());
    assert!(chunk.write_at(&file, u64::MAX).is_err());
}

/// A forked child that drops what it has inherited takes nothing from its parent, and the other
/// way round.
#[test]
fn a_forked_child_keeps_its_chunks() {
    in_child(
        "received_chunks::a_forked_child_keeps_its_chunks",
        |_| {},
        || {
            let (socket, peer) = page_pair();
            let mut sender = zero_copy_sender(peer);
            let mut receiver = Receiver::with(socket, mapping());
            let mut chunks = Some(send_and_receive(&mut sender, &mut receiver));
            let check = |chunks: &[Chunk]| {
                let bytes: Vec<u8> = chunks.iter().flat_map(Chunk::to_vec).collect();
                assert!(bytes == pattern(MIB));
            };
            in_forked_child(|| {
                check(chunks.as_ref().unwrap());
                chunks = None;
            });
            check(&chunks.take().unwrap());
            check(&send_and_receive(&mut sender, &mut receiver));
        },
    );
}

/// Returns how many mappings and descriptors this process has.
fn resources() -> (usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    (maps.lines().count(), descriptors.count())
}

#[test]
fn receivers_leak_neither_mappings_nor_descriptors() {
    in_child(
        "received_chunks::receivers_leak_neither_mappings_nor_descriptors",
        |_| {},
        || {
            let round = || {
                let (socket, peer) = page_pair();
                let mut sender = zero_copy_sender(peer);
                let mut receiver = Receiver::with(socket, mapping().max_held_chunks(8));
                let held = send_and_receive(&mut sender, &mut receiver);
                drop((receiver, held));
            };
            (0..10).for_each(|_| round());
            let before = resources();
            (0..100).for_each(|_| round());
            let after = resources();
            assert!(
                after.0 <= before.0 + 5 && after.1 <= before.1 + 2,
                "{before:?} {after:?}"
            );
        },
    );
}

/// A process can change the bytes of mapped pages after they were received, if it has sent pages of
/// the kernel, such as those of a packet ring, with `vmsplice`. So no safe function returns them as
/// a slice. If this test fails because the kernel no longer maps such pages, `ReceivedPages` may
/// become a slice.
#[test]
fn a_sender_on_this_machine_can_change_mapped_pages() {
    const BYTES: usize = 4 * 4096;
    in_network_namespace(
        "received_chunks::a_sender_on_this_machine_can_change_mapped_pages",
        || {
            let up = std::process::Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status();
            assert!(up.unwrap().success());
            let (socket, peer) = page_pair();
            let ring = packet_ring(BYTES);
            // SAFETY: the ring has `BYTES` bytes, and nothing refers to them.
            unsafe { ring.write_bytes(b'A', BYTES) };
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            let buffer = libc::iovec {
                iov_base: ring.cast(),
                iov_len: BYTES,
            };
            // SAFETY: the call reads one `iovec`, which describes the memory of the ring.
            let taken = unsafe { libc::vmsplice(writer.as_raw_fd(), &raw const buffer, 1, 0) };
            assert_eq!(taken, BYTES as isize);
            let flags = rustix::pipe::SpliceFlags::empty();
            let sent = rustix::pipe::splice(&reader, None, &peer, None, BYTES, flags);
            assert_eq!(sent.unwrap(), BYTES);

            let mut receiver = Receiver::with(socket, mapping().low_water_mark(BYTES));
            let chunks = receive_bytes(&mut receiver, BYTES);
            let bytes = || chunks.iter().flat_map(Chunk::to_vec).collect::<Vec<_>>();
            assert!(mapped_bytes(&chunks) > 0, "the kernel has copied");
            assert!(bytes() == [b'A'; BYTES]);
            // SAFETY: as above.
            unsafe { ring.write_bytes(b'B', BYTES) };
            assert!(bytes() != [b'A'; BYTES], "the pages no longer change");
        },
    );
}

/// Returns the memory of a new packet ring.
fn packet_ring(bytes: usize) -> *mut u8 {
    let pages = (bytes / 4096) as u32;
    let request = libc::tpacket_req {
        tp_block_size: 4096,
        tp_block_nr: pages,
        tp_frame_size: 2048,
        tp_frame_nr: 2 * pages,
    };
    // SAFETY: the call creates a socket. It is left open, so the ring exists until the process
    // ends.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
    assert!(socket >= 0);
    // SAFETY: the call reads a local structure.
    let set = unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_PACKET,
            libc::PACKET_RX_RING,
            (&raw const request).cast(),
            size_of_val(&request) as u32,
        )
    };
    assert_eq!(set, 0);
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: the ring is mapped where nothing else is.
    let ring = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, socket, 0) };
    assert_ne!(ring, libc::MAP_FAILED);
    ring.cast()
}

/// Bytes that were sent with `MSG_ZEROCOPY` on this machine have been copied when they arrive.
#[test]
fn a_msg_zerocopy_sender_on_this_machine_cannot_change_mapped_pages() {
    const BYTES: usize = 16 * 4096;
    let (socket, peer) = page_pair();
    let mut memory = vec![b'A'; BYTES];
    let (descriptor, on) = (peer.as_raw_fd(), 1_i32);
    // SAFETY: the call reads a local integer.
    let set = unsafe {
        libc::setsockopt(
            descriptor,
            libc::SOL_SOCKET,
            libc::SO_ZEROCOPY,
            (&raw const on).cast(),
            size_of_val(&on) as u32,
        )
    };
    assert_eq!(set, 0);
    let (address, flags) = (memory.as_ptr().cast(), libc::MSG_ZEROCOPY);
    // SAFETY: the call reads the memory, which is not freed before the test ends.
    let sent = unsafe { libc::send(descriptor, address, BYTES, flags) };
    assert_eq!(sent, BYTES as isize);
    let mut receiver = Receiver::with(socket, mapping().low_water_mark(BYTES));
    let chunks = receive_bytes(&mut receiver, BYTES);
    assert!(mapped_bytes(&chunks) > BYTES / 2);
    std::hint::black_box(&mut memory).fill(b'B');
    let bytes: Vec<u8> = chunks.iter().flat_map(Chunk::to_vec).collect();
    assert!(bytes == [b'A'; BYTES]);
}
