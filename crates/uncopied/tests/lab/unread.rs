//! Peers that reset the connection, or do not read, while memory is in flight.

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::Duration;

use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};
use uncopied::{ErrorKind, Mechanism, SendOptions, Sender, in_flight_bytes};

use crate::harness::{HANG_TIMEOUT, pattern_pages, wait_until};
use crate::sides::two_sides;

const SEND_BYTES: usize = 256 << 10;

/// The time that the peer waits before it resets the connection.
const PEER_WAITS: Duration = Duration::from_secs(1);

/// Sends until the socket is full, and asserts that the memory stays in flight until the peer
/// resets the connection, and is free then.
fn fill_and_wait(socket: TcpStream, mechanism: Mechanism) {
    socket.set_nonblocking(true).unwrap();
    let options = SendOptions::default().force_mechanisms(&[mechanism]);
    let mut sender = Sender::with(socket, options);
    let mut completions = Vec::new();
    let kind = loop {
        match sender.try_send(pattern_pages(SEND_BYTES)) {
            Ok(sent) => completions.push(sent.into_completion()),
            Err(error) => break error.kind(),
        }
    };
    assert_eq!(kind, ErrorKind::WouldBlock);
    sender.reap();
    assert!(in_flight_bytes() > 0);
    let last = completions.last().unwrap();
    assert!(last.outcome().is_none(), "{mechanism}: not in flight");
    for completion in completions {
        completion.wait(Some(HANG_TIMEOUT)).unwrap();
    }
    drop(sender);
    wait_until("nothing is in flight", || in_flight_bytes() == 0);
}

/// Does not read, and resets the connection after a while.
fn reset_later(socket: TcpStream) {
    set_socket_recv_buffer_size(&socket, 64 << 10).unwrap();
    sleep(PEER_WAITS);
    set_socket_linger(socket.as_fd(), Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_reset_frees_memory_sent_with_msg_zerocopy() {
    two_sides(
        |socket| fill_and_wait(socket, Mechanism::MsgZerocopy),
        reset_later,
    );
}

#[test]
fn a_reset_frees_memory_sent_with_send_zc() {
    two_sides(
        |socket| fill_and_wait(socket, Mechanism::SendZc),
        reset_later,
    );
}
