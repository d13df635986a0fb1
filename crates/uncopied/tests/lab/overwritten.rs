//! Memory that is overwritten as soon as a completion allows it, or at any time. The peer reads
//! late, so much of the memory is in flight.

use std::net::TcpStream;
use std::thread::sleep;
use std::time::Duration;

use rustix::net::sockopt::set_socket_recv_buffer_size;
use uncopied::arena::{PageBuffer, Region};
use uncopied::{FreeReason, LimitAction, Mechanism, SendOptions, Sender};

use crate::harness::expect_eof;
use crate::sides::two_sides;

const FRAME_BYTES: usize = 64 << 10;
const FRAMES: usize = 400;
const BUFFERS: usize = 4;

/// The delay before the peer reads.
const LATE: Duration = Duration::from_millis(300);

/// Receives the frames, the first of them late, and checks every byte.
fn expect_frames(mut socket: TcpStream) {
    set_socket_recv_buffer_size(&socket, 128 << 10).unwrap();
    sleep(LATE);
    let mut frame = vec![0; FRAME_BYTES];
    for number in 0..FRAMES {
        std::io::Read::read_exact(&mut socket, &mut frame).unwrap();
        let wrong = frame.iter().position(|&byte| byte != number as u8);
        assert_eq!(wrong, None, "frame {number}");
    }
    expect_eof(&mut socket);
}

/// Sends frames from a few buffers, and overwrites each buffer as soon as its send is complete.
fn send_from_few_buffers(socket: TcpStream, mechanism: Mechanism, reason: FreeReason) {
    let options = SendOptions::default()
        .force_mechanisms(&[mechanism])
        .assume_remote_peer(true)
        .at_limit(LimitAction::Wait);
    let mut sender = Sender::with(socket, options);
    let mut sends = std::collections::VecDeque::new();
    for number in 0..FRAMES {
        let mut buffer = if sends.len() < BUFFERS {
            PageBuffer::zeroed(FRAME_BYTES).unwrap()
        } else {
            let (pages, completion): (uncopied::arena::Pages, uncopied::Completion) =
                sends.pop_front().unwrap();
            let outcome = completion.wait(None).unwrap();
            assert_eq!(outcome.reason, reason);
            let mut buffer = pages.try_into_buffer().expect("complete");
            buffer.set_len(FRAME_BYTES);
            buffer
        };
        buffer.fill(number as u8);
        let pages = buffer.freeze();
        let sent = sender.send(&pages).unwrap();
        sends.push_back((pages, sent.into_completion()));
    }
    assert_eq!(sender.report().by(mechanism), (FRAMES * FRAME_BYTES) as u64);
}

#[test]
fn buffers_sent_with_msg_zerocopy_are_reused() {
    let (mechanism, reason) = (Mechanism::MsgZerocopy, FreeReason::Notification);
    two_sides(
        |socket| send_from_few_buffers(socket, mechanism, reason),
        expect_frames,
    );
}

#[test]
fn buffers_sent_with_send_zc_are_reused() {
    let (mechanism, reason) = (Mechanism::SendZc, FreeReason::Notification);
    two_sides(
        |socket| send_from_few_buffers(socket, mechanism, reason),
        expect_frames,
    );
}

/// With `vmsplice`, the pages can be reused once the peer has acknowledged them, although it has
/// not read them yet: its receive queue has copies.
#[test]
fn buffers_sent_with_vmsplice_are_reused_once_acknowledged() {
    let (mechanism, reason) = (Mechanism::Vmsplice, FreeReason::Acknowledged);
    two_sides(
        |socket| send_from_few_buffers(socket, mechanism, reason),
        expect_frames,
    );
}

/// A region is overwritten while it is in flight.
fn send_from_a_region(socket: TcpStream, mechanism: Mechanism) {
    let options = SendOptions::default()
        .force_mechanisms(&[mechanism])
        .at_limit(LimitAction::Wait);
    let mut sender = Sender::with(socket, options);
    let (region, mut writer) = Region::new(2 * FRAME_BYTES).unwrap();
    for number in 0..FRAMES {
        let start = number % 2 * FRAME_BYTES;
        writer[start..start + FRAME_BYTES].fill(number as u8);
        sender
            .send(region.part(start..start + FRAME_BYTES))
            .unwrap();
    }
    let report = sender.report();
    assert_eq!(
        report.by(mechanism),
        (FRAMES * FRAME_BYTES) as u64,
        "{report}"
    );
}

#[test]
fn a_region_sent_with_msg_zerocopy_is_overwritten() {
    two_sides(
        |socket| send_from_a_region(socket, Mechanism::MsgZerocopy),
        expect_frames,
    );
}

#[test]
fn a_region_sent_with_vmsplice_is_overwritten() {
    two_sides(
        |socket| send_from_a_region(socket, Mechanism::Vmsplice),
        expect_frames,
    );
}
