//! Peers that reset the connection, or do not read, while memory is in flight.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::Duration;

use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};
use uncopied::{ErrorKind, Mechanism, SendOptions, Sender, in_flight_bytes};

use crate::harness::{HANG_TIMEOUT, pattern_pages, unless_blocked, wait_until};
use crate::sides::two_sides_with_control;

const SEND_BYTES: usize = 256 << 10;

/// Sends until the socket is full, and asserts that the memory is in flight then, and is free once
/// the peer has reset the connection.
fn fill_and_wait(socket: TcpStream, mut control: TcpStream, mechanism: Mechanism) {
    socket.set_nonblocking(true).unwrap();
    let options = SendOptions::default().force_mechanisms(&[mechanism]);
    let mut sender = Sender::with(socket, options);
    let mut completions = Vec::new();
    // While the peer still has room, bytes in flight reach it, and free memory.
    wait_until("a full socket, and bytes in flight", || {
        let before = completions.len();
        while let Some(sent) = unless_blocked(
            sender.try_send(pattern_pages(SEND_BYTES)),
            ErrorKind::WouldBlock,
        ) {
            completions.push(sent.into_completion());
        }
        sleep(Duration::from_millis(50));
        sender.reap();
        completions.len() == before && in_flight_bytes() > 0
    });
    control.write_all(&[0]).unwrap();
    for completion in completions {
        completion.wait(Some(HANG_TIMEOUT)).unwrap();
    }
    drop(sender);
    wait_until("nothing is in flight", || in_flight_bytes() == 0);
}

/// Does not read, and resets the connection when it is told to.
fn reset_when_told(socket: TcpStream, mut control: TcpStream) {
    set_socket_recv_buffer_size(&socket, 64 << 10).unwrap();
    control.read_exact(&mut [0]).unwrap();
    set_socket_linger(socket.as_fd(), Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_reset_frees_memory_sent_with_msg_zerocopy() {
    two_sides_with_control(
        |socket, control| fill_and_wait(socket, control, Mechanism::MsgZerocopy),
        reset_when_told,
    );
}

#[test]
fn a_reset_frees_memory_sent_with_send_zc() {
    two_sides_with_control(
        |socket, control| fill_and_wait(socket, control, Mechanism::SendZc),
        reset_when_told,
    );
}
