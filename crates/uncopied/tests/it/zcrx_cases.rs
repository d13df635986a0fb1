//! Cases for queues that receive from several sockets. They hold for a queue that receives into an
//! area of memory and for one that copies, so the tests of the host and those of the lab share
//! them.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use uncopied::zcrx::{Builder, Chunk, Event, Id, Queue};
use uncopied::{ErrorKind, Mechanism, Report, SendOptions, Sender};

use crate::harness::{HANG_TIMEOUT, pattern};

/// The streams consist of blocks of this many bytes, and no two pages of any stream are the same.
pub(crate) const BLOCK: usize = 1 << 20;

const PAGE: usize = 4096;

/// Long enough for the kernel to receive whatever it can.
const SHORT: Duration = Duration::from_millis(50);

pub(crate) fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0, peer)
}

/// The bytes of a stream.
#[derive(Clone)]
struct Stream {
    number: u32,
    index: u32,
    block: Vec<u8>,
}

impl Stream {
    fn new(number: u32) -> Self {
        let mut stream = Self {
            number,
            index: 0,
            block: pattern(BLOCK),
        };
        stream.stamp();
        stream
    }

    fn next_block(&mut self) {
        self.index += 1;
        self.stamp();
    }

    /// Makes each page of the block unlike the same page of other blocks and streams.
    fn stamp(&mut self) {
        let stamp = u64::from(self.number) << 32 | u64::from(self.index);
        for page in self.block.chunks_mut(PAGE) {
            page[..8].copy_from_slice(&stamp.to_be_bytes());
        }
    }
}

/// Sends blocks of the stream `number`, and closes the connection.
pub(crate) fn send_blocks(mut peer: TcpStream, number: u32, blocks: u32) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut stream = Stream::new(number);
        for _ in 0..blocks {
            peer.write_all(&stream.block).unwrap();
            stream.next_block();
        }
    })
}

/// Compares what arrives with the bytes of a stream.
#[derive(Clone)]
pub(crate) struct Expected {
    stream: Stream,
    pub(crate) bytes: usize,
}

impl Expected {
    pub(crate) fn new(number: u32) -> Self {
        Self {
            stream: Stream::new(number),
            bytes: 0,
        }
    }

    pub(crate) fn check(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let start = self.bytes % BLOCK;
            let len = bytes.len().min(BLOCK - start);
            assert!(
                bytes[..len] == self.stream.block[start..start + len],
                "wrong bytes at {} of stream {}",
                self.bytes,
                self.stream.number
            );
            self.bytes += len;
            bytes = &bytes[len..];
            if self.bytes.is_multiple_of(BLOCK) {
                self.stream.next_block();
            }
        }
    }
}

pub(crate) type TcpQueue = Queue<TcpStream>;

/// Returns what happens next, which must not take long.
pub(crate) fn next(queue: &mut TcpQueue) -> (Id, Event) {
    let event = queue.receive(Some(HANG_TIMEOUT)).unwrap();
    event.unwrap_or_else(|| panic!("nothing happened: {queue:?}"))
}

/// Returns the next chunk, or `None` at the end of the stream, of the only socket.
pub(crate) fn next_chunk(queue: &mut TcpQueue) -> Option<Chunk> {
    match next(queue) {
        (_, Event::Chunk(chunk)) => Some(chunk),
        (_, Event::End) => None,
        (_, Event::Failed(error)) => panic!("{error}"),
    }
}

/// The mechanism with which a queue receives.
fn mechanism(queue: &TcpQueue) -> Mechanism {
    match queue.refusal() {
        None => Mechanism::Zcrx,
        Some(_) => Mechanism::Copy,
    }
}

/// Asserts that everything was received by one mechanism, and copied by the CPU.
fn assert_copied(report: &Report, by: Mechanism, bytes: u64) {
    assert_eq!((report.by(by), report.bytes()), (bytes, bytes), "{report}");
    assert_eq!(report.zero_copy_bytes(), 0, "{report}");
    assert_eq!(report.copied_bytes(), bytes, "{report}");
    assert!(report.fallbacks().is_empty(), "{report}");
}

/// A long stream arrives unchanged, in order, and counts as copied.
pub(crate) fn long_stream(builder: &Builder, blocks: u32) {
    let mut queue = builder
        .clone()
        .area_bytes(4 << 20)
        .register_or_copy()
        .unwrap();
    let (socket, peer) = connection();
    let id = queue.add(socket).unwrap();
    let sender = send_blocks(peer, 1, blocks);
    let mut expected = Expected::new(1);
    while let Some(chunk) = next_chunk(&mut queue) {
        assert_eq!(chunk.mechanism(), mechanism(&queue));
        assert!(!chunk.is_empty());
        let max = queue.buffer_bytes().unwrap_or(usize::MAX);
        assert!(chunk.len() <= max, "{}", chunk.len());
        expected.check(&chunk);
    }
    sender.join().unwrap();
    let bytes = u64::from(blocks) * BLOCK as u64;
    assert_eq!(expected.bytes as u64, bytes);
    println!("{}", queue.report());
    assert_copied(queue.report(), mechanism(&queue), bytes);
    assert_copied(queue.report_of(id).unwrap(), mechanism(&queue), bytes);
    // No socket receives any more, so this does not wait.
    assert!(queue.receive(None).unwrap().is_none());
}

/// Chunks hold all memory. Nothing more arrives, and what they hold does not change, until another
/// thread drops one.
pub(crate) fn held_chunks(builder: &Builder) {
    let builder = builder.clone().area_bytes(64 * PAGE).refill_entries(4);
    let mut queue = builder.register_or_copy().unwrap();
    let (socket, peer) = connection();
    queue.add(socket).unwrap();
    let blocks = 4;
    let sender = send_blocks(peer, 2, blocks);
    let mut expected = Expected::new(2);
    let mut held = Vec::new();
    let mut starved = 0;
    'stream: loop {
        let before = expected.clone();
        loop {
            match queue.receive(Some(SHORT)).unwrap() {
                Some((_, Event::Chunk(chunk))) => {
                    expected.check(&chunk);
                    held.push(chunk);
                }
                Some((_, Event::End)) => break 'stream,
                Some((_, Event::Failed(error))) => panic!("{error}"),
                None if queue.is_starved() => break,
                None => {}
            }
        }
        starved += 1;
        assert!(!held.is_empty());
        let held_bytes: usize = held.iter().map(|it| it.len()).sum();
        assert!(
            held_bytes <= 64 * PAGE + (64 << 10),
            "{held_bytes} bytes are held"
        );
        // While memory is short, nothing that is held was overwritten.
        let mut again = before;
        for chunk in &held {
            again.check(chunk);
        }
        // The first of them are dropped by another thread, while this one waits.
        let dropped = std::mem::take(&mut held);
        let dropper = thread::spawn(move || {
            thread::sleep(SHORT / 5);
            drop(dropped);
        });
        match next(&mut queue) {
            (_, Event::Chunk(chunk)) => {
                expected.check(&chunk);
                drop(chunk);
            }
            (_, Event::End) => break,
            (_, Event::Failed(error)) => panic!("{error}"),
        }
        dropper.join().unwrap();
    }
    sender.join().unwrap();
    assert_eq!(expected.bytes, blocks as usize * BLOCK);
    assert!(starved >= 3, "memory ran out {starved} times only");
    assert!(!queue.is_starved());
}

/// Another thread holds many chunks, and drops them in random order. Each still has its bytes when
/// it is dropped.
pub(crate) fn random_drops(builder: &Builder, blocks: u32) {
    let builder = builder.clone().area_bytes(96 * PAGE).refill_entries(8);
    let mut queue = builder.register_or_copy().unwrap();
    let (socket, peer) = connection();
    queue.add(socket).unwrap();
    let sender = send_blocks(peer, 3, blocks);
    let (chunks, received) = mpsc::channel::<(Chunk, Vec<u8>)>();
    let holder = thread::spawn(move || {
        let mut held = Vec::new();
        let mut held_bytes = 0;
        let mut total = 0;
        let mut random = 1_u64;
        let mut next_random = || {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 33) as usize
        };
        for chunk in received {
            total += chunk.0.len();
            held_bytes += chunk.0.len();
            held.push(chunk);
            // Up to 60 of 96 pages are held.
            while held_bytes > next_random() % (60 * PAGE) {
                let (chunk, bytes) = held.swap_remove(next_random() % held.len());
                assert!(chunk[..] == bytes[..], "a chunk has changed");
                held_bytes -= bytes.len();
            }
        }
        for (chunk, bytes) in held {
            assert!(chunk[..] == bytes[..], "a chunk has changed");
        }
        total
    });
    let mut expected = Expected::new(3);
    while let Some(chunk) = next_chunk(&mut queue) {
        expected.check(&chunk);
        let bytes = chunk.to_vec();
        chunks.send((chunk, bytes)).unwrap();
    }
    drop(chunks);
    sender.join().unwrap();
    assert_eq!(expected.bytes, blocks as usize * BLOCK);
    assert_eq!(holder.join().unwrap(), expected.bytes);
}

/// Several sockets share a queue. One of them is removed in the middle of its stream, and read with
/// ordinary calls from then on.
pub(crate) fn several_sockets(builder: &Builder) {
    let builder = builder.clone().area_bytes(256 * PAGE).refill_entries(16);
    let mut queue = builder.register_or_copy().unwrap();
    let count = 9;
    let blocks = 2;
    let mut senders = Vec::new();
    let mut expected = HashMap::new();
    let mut ids = Vec::new();
    for number in 0..count {
        let (socket, peer) = connection();
        let id = queue.add(socket).unwrap();
        senders.push(send_blocks(peer, number, blocks));
        expected.insert(id, Expected::new(number));
        ids.push(id);
    }
    let removed = ids[4];
    let mut ended = 0;
    while ended < count {
        if expected
            .get(&removed)
            .is_some_and(|it| it.bytes >= BLOCK / 2)
        {
            let mut expected = expected.remove(&removed).unwrap();
            let (mut socket, events) = queue.remove(removed).unwrap();
            let mut has_ended = false;
            for event in events {
                match event {
                    Event::Chunk(chunk) => expected.check(&chunk),
                    Event::End => has_ended = true,
                    Event::Failed(error) => panic!("{error}"),
                }
            }
            assert!(queue.get(removed).is_none() && queue.remove(removed).is_err());
            if !has_ended {
                let mut rest = Vec::new();
                socket.set_read_timeout(Some(HANG_TIMEOUT)).unwrap();
                // The sender may be blocked until the others have been read, too.
                while socket.read_to_end(&mut rest).is_err() {}
                expected.check(&rest);
            }
            assert_eq!(expected.bytes, blocks as usize * BLOCK);
            ended += 1;
            continue;
        }
        match next(&mut queue) {
            (id, Event::Chunk(chunk)) => expected.get_mut(&id).unwrap().check(&chunk),
            (id, Event::End) => {
                assert_eq!(expected[&id].bytes, blocks as usize * BLOCK);
                queue.remove(id).unwrap();
                ended += 1;
            }
            (id, Event::Failed(error)) => panic!("{id:?}: {error}"),
        }
    }
    for sender in senders {
        sender.join().unwrap();
    }
    let bytes: usize = expected.values().map(|it| it.bytes).sum();
    assert_eq!(bytes, (count as usize - 1) * blocks as usize * BLOCK);
    assert!(queue.report().bytes() >= (bytes + BLOCK / 2) as u64);
}

/// A peer resets the connection after some bytes. Another connection of the same queue goes on.
pub(crate) fn reset(builder: &Builder) {
    let mut queue = builder.register_or_copy().unwrap();
    let (socket, mut peer) = connection();
    let (other_socket, mut other_peer) = connection();
    let id = queue.add(socket).unwrap();
    let other = queue.add(other_socket).unwrap();
    peer.write_all(&[7; 1000]).unwrap();
    let mut received = 0;
    while received < 1000 {
        match next(&mut queue) {
            (of, Event::Chunk(chunk)) if of == id => {
                assert!(chunk.iter().all(|&byte| byte == 7));
                received += chunk.len();
            }
            event => panic!("{event:?}"),
        }
    }
    rustix::net::sockopt::set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
    drop(peer);
    match next(&mut queue) {
        (of, Event::Failed(error)) if of == id => {
            assert_eq!(error.kind(), ErrorKind::PeerClosed, "{error}");
            assert_eq!(error.moved(), 1000);
            assert_eq!(error.mechanism(), Some(mechanism(&queue)));
            let said = error.to_string();
            let expected = "the peer closed the connection after 1000 bytes";
            assert!(said.starts_with(expected), "{said}");
        }
        event => panic!("{event:?}"),
    }
    other_peer.write_all(b"still here").unwrap();
    match next(&mut queue) {
        (of, Event::Chunk(chunk)) => assert_eq!((of, &chunk[..]), (other, &b"still here"[..])),
        event => panic!("{event:?}"),
    }
    // The socket stays usable for replies, and bytes that arrive meanwhile wait.
    queue.get(other).unwrap().write_all(b"reply").unwrap();
    let mut reply = [0; 5];
    other_peer.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"reply");
}

/// An event loop waits for the descriptor of the queue, with sockets that are non-blocking.
pub(crate) fn event_loop(builder: &Builder) {
    let mut queue = builder.register_or_copy().unwrap();
    let (socket, peer) = connection();
    socket.set_nonblocking(true).unwrap();
    queue.add(socket).unwrap();
    assert!(queue.receive(Some(Duration::ZERO)).unwrap().is_none());
    let sender = thread::spawn(move || {
        let mut peer = peer;
        for index in 0..50_u8 {
            peer.write_all(&[index; 3000]).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
    });
    let mut received = Vec::new();
    'stream: loop {
        let limit = Timespec::try_from(HANG_TIMEOUT).unwrap();
        let mut awaited = [PollFd::from_borrowed_fd(queue.as_fd(), PollFlags::IN)];
        assert_eq!(poll(&mut awaited, Some(&limit)).unwrap(), 1, "not woken");
        while let Some((_, event)) = queue.receive(Some(Duration::ZERO)).unwrap() {
            match event {
                Event::Chunk(chunk) => received.extend_from_slice(&chunk),
                Event::End => break 'stream,
                Event::Failed(error) => panic!("{error}"),
            }
        }
    }
    sender.join().unwrap();
    let expected: Vec<u8> = (0..50).flat_map(|index| [index; 3000]).collect();
    assert!(received == expected);
}

/// Chunks are sent on by the thread that receives. All of the area is soon in flight, and nobody
/// but the queue itself reads the notifications meanwhile.
pub(crate) fn sent_on(builder: &Builder) {
    for mechanism in [Mechanism::MsgZerocopy, Mechanism::SendZc, Mechanism::Copy] {
        let builder = builder.clone().area_bytes(32 * PAGE);
        let mut queue: TcpQueue = builder.register_or_copy().unwrap();
        let (socket, peer) = connection();
        queue.add(socket).unwrap();
        let first = send_blocks(peer, 6, 2);
        let (onward, mut target) = connection();
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            target.read_to_end(&mut bytes).unwrap();
            let mut expected = Expected::new(6);
            expected.check(&bytes);
            expected.bytes
        });
        let options = SendOptions::default().force_mechanisms(&[mechanism]);
        let mut sender = Sender::with(onward, options);
        let mut completions = Vec::new();
        while let Some(chunk) = next_chunk(&mut queue) {
            completions.push(sender.send(chunk).unwrap().into_completion());
        }
        first.join().unwrap();
        for completion in completions {
            completion.wait(Some(HANG_TIMEOUT)).unwrap();
        }
        assert_eq!(sender.report().by(mechanism), 2 * BLOCK as u64);
        drop(sender);
        assert_eq!(reader.join().unwrap(), 2 * BLOCK);
    }
}

/// Chunks hold all memory while an event loop waits for the descriptor of the queue. Dropping a
/// chunk wakes it.
pub(crate) fn event_loop_starved(builder: &Builder) {
    let mut queue: TcpQueue = builder
        .clone()
        .area_bytes(16 * PAGE)
        .register_or_copy()
        .unwrap();
    let (socket, peer) = connection();
    queue.add(socket).unwrap();
    let sender = send_blocks(peer, 11, 1);
    let mut expected = Expected::new(11);
    let mut held = Vec::new();
    let is_readable = |queue: &TcpQueue, limit| {
        let limit = Timespec::try_from(limit).unwrap();
        let mut awaited = [PollFd::from_borrowed_fd(queue.as_fd(), PollFlags::IN)];
        poll(&mut awaited, Some(&limit)).unwrap() > 0
    };
    let mut woken = 0;
    'stream: loop {
        while let Some((_, event)) = queue.receive(Some(Duration::ZERO)).unwrap() {
            match event {
                Event::Chunk(chunk) => {
                    expected.check(&chunk);
                    held.push(chunk);
                }
                Event::End => break 'stream,
                Event::Failed(error) => panic!("{error}"),
            }
        }
        if queue.is_starved() && !is_readable(&queue, SHORT) {
            let dropped = held.swap_remove(woken % held.len());
            drop(dropped);
            assert!(is_readable(&queue, HANG_TIMEOUT), "not woken");
            woken += 1;
        } else {
            assert!(is_readable(&queue, HANG_TIMEOUT), "not woken");
        }
        if woken >= 5 {
            held.clear();
        }
    }
    sender.join().unwrap();
    assert_eq!(expected.bytes, BLOCK);
    assert!(woken >= 5, "{woken}");
}

/// A queue that waits takes no CPU time, whether nothing arrives or chunks hold all memory.
pub(crate) fn idle(builder: &Builder) {
    let mut queue: TcpQueue = builder
        .clone()
        .area_bytes(16 * PAGE)
        .register_or_copy()
        .unwrap();
    let (socket, peer) = connection();
    queue.add(socket).unwrap();
    let waits_idly = |queue: &mut TcpQueue| {
        let before = thread_cpu_time();
        assert!(
            queue
                .receive(Some(Duration::from_secs(1)))
                .unwrap()
                .is_none()
        );
        let used = thread_cpu_time() - before;
        assert!(used < Duration::from_millis(250), "{used:?} of CPU time");
    };
    waits_idly(&mut queue);
    assert!(!queue.is_starved());
    let sender = send_blocks(peer, 9, 1);
    let mut held = Vec::new();
    while !queue.is_starved() {
        match queue.receive(Some(SHORT)).unwrap() {
            Some((_, Event::Chunk(chunk))) => held.push(chunk),
            Some(event) => panic!("{event:?}"),
            None => {}
        }
    }
    while let Some((_, Event::Chunk(chunk))) = queue.receive(Some(SHORT)).unwrap() {
        held.push(chunk);
    }
    waits_idly(&mut queue);
    drop(held);
    while next_chunk(&mut queue).is_some() {}
    sender.join().unwrap();
}

fn thread_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap()
}

/// Runs `body` in a thread that lacks a capability.
pub(crate) fn without_capability<T: Send>(
    capability: CapabilitySet,
    body: impl FnOnce() -> T + Send,
) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut sets = capabilities(None).unwrap();
            sets.effective.remove(capability);
            set_capabilities(None, sets).unwrap();
            body()
        });
        thread.join().unwrap()
    })
}
