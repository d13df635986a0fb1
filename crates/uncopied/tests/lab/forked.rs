//! Processes that fork, or replace themselves, while memory is in flight.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};

use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use uncopied::{Completion, Mechanism, SendOptions, Sender};

use crate::harness::{
    HANG_TIMEOUT, expect_bytes, expect_eof, in_forked_child, pattern, pattern_pages,
};
use crate::sides::{two_sides, two_sides_with_control};

/// The size of a send. All of them fit into the buffer of the socket, but not into that of the
/// peer.
const SEND_BYTES: usize = 60_001;
const SENDS: usize = 3;

/// The port to which a new program connects.
const SECOND_PORT: u16 = 7001;

/// Makes sends, and asserts that the last of them is in flight.
fn sends_in_flight(
    socket: TcpStream,
    mechanism: Mechanism,
) -> (Sender<TcpStream>, Vec<Completion>) {
    set_socket_send_buffer_size(&socket, 1 << 20).unwrap();
    let options = SendOptions::default().force_mechanisms(&[mechanism]);
    let mut sender = Sender::with(socket, options);
    let send = |_| {
        let sent = sender.send(pattern_pages(SEND_BYTES)).unwrap();
        assert_eq!(sent.report().by(mechanism), SEND_BYTES as u64);
        sent.into_completion()
    };
    let completions: Vec<_> = (0..SENDS).map(send).collect();
    assert_eq!(completions[SENDS - 1].outcome(), None, "not in flight");
    (sender, completions)
}

/// Reads when it is told to, and expects everything.
fn expect_when_told(mut socket: TcpStream, mut control: TcpStream) {
    set_socket_recv_buffer_size(&socket, 16 << 10).unwrap();
    control.read_exact(&mut [0]).unwrap();
    expect_bytes(&mut socket, &pattern(SEND_BYTES).repeat(SENDS));
    expect_eof(&mut socket);
}

/// A forked child drops everything, and sends from memory of its own. The parent's sends in flight
/// must stay as they are.
fn fork_with_sends_in_flight(socket: TcpStream, mut control: TcpStream, mechanism: Mechanism) {
    let (sender, completions) = sends_in_flight(socket, mechanism);
    let mut inherited = Some((sender, completions));
    in_forked_child(|| {
        drop(inherited.take());
        // The child's copies of the pages may be used again, and have no effect on those in flight.
        for _ in 0..SENDS {
            let mut buffer = uncopied::arena::PageBuffer::zeroed(SEND_BYTES).unwrap();
            buffer.fill(0xee);
        }
    });
    control.write_all(&[0]).unwrap();
    let (sender, completions) = inherited.unwrap();
    for completion in completions {
        completion.wait(Some(HANG_TIMEOUT)).unwrap();
    }
    drop(sender);
}

#[test]
fn a_fork_changes_nothing_in_flight_with_msg_zerocopy() {
    let mechanism = Mechanism::MsgZerocopy;
    two_sides_with_control(
        |socket, control| fork_with_sends_in_flight(socket, control, mechanism),
        expect_when_told,
    );
}

#[test]
fn a_fork_changes_nothing_in_flight_with_send_zc() {
    let mechanism = Mechanism::SendZc;
    two_sides_with_control(
        |socket, control| fork_with_sends_in_flight(socket, control, mechanism),
        expect_when_told,
    );
}

/// A process replaces itself by `uncopied::exec` while its sends are in flight. The peer reads only
/// once the new program has connected to it, so the call must not wait for the peer. The peer must
/// get every byte.
#[test]
fn exec_waits_for_no_peer_and_loses_no_byte() {
    let second_listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, SECOND_PORT)).unwrap();
    two_sides(
        |socket| {
            let peer = socket.peer_addr().unwrap().ip().to_string();
            let mut socket = Some(socket);
            in_forked_child(|| {
                let sends = sends_in_flight(socket.take().unwrap(), Mechanism::SendZc);
                let mut connect = Command::new("/bin/busybox");
                connect.args(["nc", &peer, &SECOND_PORT.to_string()]);
                let error = uncopied::exec(connect.stdin(Stdio::null()));
                panic!("{error}: {sends:?}");
            });
        },
        |mut socket| {
            set_socket_recv_buffer_size(&socket, 16 << 10).unwrap();
            drop(second_listener.accept().unwrap());
            expect_bytes(&mut socket, &pattern(SEND_BYTES).repeat(SENDS));
            expect_eof(&mut socket);
        },
    );
}
