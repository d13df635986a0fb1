//! Helpers for the tests of this module: connections over loopback, pages with a recognisable
//! pattern, and a ledger of the memory in flight.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;

use crate::arena::{Memory, PageBuffer, Pages};
use crate::in_flight::{
    Completion, FreeReason, Lease, NotificationSource, NotificationStats, Quota, SendPart,
    SendTracker,
};

/// How long a test waits for a completion.
pub(super) const COMPLETION_TIMEOUT: Option<Duration> = Some(Duration::from_secs(20));

/// Connects a non-blocking sender to a receiver over loopback, and returns both. The buffer sizes
/// are in bytes and approximate.
pub(super) fn connect(send_buffer: usize, receive_buffer: usize) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    sockopt::set_socket_recv_buffer_size(&listener, receive_buffer).expect("set");
    let address = listener.local_addr().expect("bound");
    let sender = TcpStream::connect(address).expect("connected");
    sockopt::set_socket_send_buffer_size_force(&sender, send_buffer)
        .or_else(|_| sockopt::set_socket_send_buffer_size(&sender, send_buffer))
        .expect("set");
    sender.set_nonblocking(true).expect("set");
    let (receiver, _) = listener.accept().expect("accepted");
    (sender, receiver)
}

/// Returns pages with `len` bytes of a pattern that differs for every `seed`.
pub(super) fn pattern(seed: u64, len: usize) -> Pages {
    let mut buffer = PageBuffer::with_capacity(len).expect("allocated");
    buffer.set_len(len);
    for (index, word) in buffer.chunks_mut(8).enumerate() {
        let value = pattern_word(seed, index as u64);
        word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
    }
    buffer.freeze()
}

fn pattern_word(seed: u64, index: u64) -> u64 {
    (seed << 32 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Whether `bytes` equal the start of the pattern for `seed`.
pub(super) fn is_pattern(bytes: &[u8], seed: u64) -> bool {
    bytes
        .chunks(8)
        .enumerate()
        .all(|(index, word)| word == &pattern_word(seed, index as u64).to_le_bytes()[..word.len()])
}

/// The quota and the statistics of a test's sends.
pub(super) struct TestLedger {
    pub(super) quota: Arc<Quota>,
    pub(super) stats: Arc<NotificationStats>,
}

impl TestLedger {
    pub(super) fn new() -> Self {
        Self {
            quota: Quota::new(u64::MAX),
            stats: Arc::default(),
        }
    }

    pub(super) fn lease(&self, pages: &Pages) -> Lease {
        Lease::take(Memory::Pages(pages.clone()), &self.quota).expect("within the limit")
    }

    /// Begins a send with a single part, and returns this part and the completion of the send.
    pub(super) fn part(&self, source: Arc<dyn NotificationSource>) -> (SendPart, Completion) {
        let tracker = SendTracker::new();
        let part = tracker.part(&self.stats, Some(source));
        (part, tracker.completion())
    }
}

/// A send that a socket has accepted at least in part: the number of accepted bytes, and the
/// completion of the send.
pub(super) type AcceptedSend = (usize, Completion);

/// Receives the bytes of these sends, and checks that each send has the pattern whose seed is the
/// index of the send.
pub(super) fn receive_and_check(mut receiver: &TcpStream, sends: &[AcceptedSend]) {
    for (index, (bytes, _)) in sends.iter().enumerate() {
        let mut received = vec![0; *bytes];
        receiver.read_exact(&mut received).expect("received");
        assert!(
            is_pattern(&received, index as u64),
            "send {index} was changed"
        );
    }
}

/// Waits until all of these sends are complete, and checks their outcomes.
pub(super) fn wait_for_all(sends: &[AcceptedSend]) {
    for (bytes, completion) in sends {
        let outcome = completion.wait(COMPLETION_TIMEOUT).expect("complete");
        assert_eq!(
            (outcome.bytes, outcome.reason),
            (*bytes as u64, FreeReason::Notification)
        );
    }
}
