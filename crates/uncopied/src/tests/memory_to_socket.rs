//! Checks the errno tables of `msg_zerocopy`, `vmsplice` and `copy`, the limit on bytes in flight,
//! and the completions.

use std::io::Read;
use std::net::TcpStream;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::sockopt::set_socket_recv_buffer_size;

use super::faulty_kernel::{Call, Fault, FaultRule, FaultyKernel};
use super::{faultless, pattern, tcp_pair};
use crate::ErrorKind;
use crate::arena::{Memory, PageBuffer};
use crate::error::Error;
use crate::in_flight::{FreeReason, LimitAction, SendOutcome};
use crate::policy::Mechanism::{Copy, MsgZerocopy, Vmsplice};
use crate::policy::{Driver, Mechanism, Plan};
use crate::report::Report;
use crate::send::{Channel, SendOptions, Sent};
use crate::transfer::{MemoryProgress, MemoryTransfer};

const SEND_BYTES: usize = 100_000;

/// Returns a pattern that differs for each `seed`.
fn seeded_pattern(seed: u8) -> Vec<u8> {
    let bytes = pattern(SEND_BYTES as u64).into_iter();
    bytes.map(|byte| byte ^ seed).collect()
}

fn pages(seed: u8) -> Memory {
    let buffer = PageBuffer::copy_from_slice(&seeded_pattern(seed)).expect("a buffer");
    Memory::Pages(buffer.freeze())
}

/// Sends with this plan while the first call of a kind fails, and checks the bytes that arrive. The
/// send runs in a new thread, because this thread may still cache an idle pipe from an earlier
/// send. With such a pipe, `vmsplice` would make no call that creates or resizes a pipe, so these
/// calls could not fail.
fn send(plan: &[Mechanism], call: Call, errno: Errno) -> Result<(Report, SendOutcome), Error> {
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send_in_this_thread(plan, call, errno));
        sending.join().expect("no assertion failed")
    })
}

fn send_in_this_thread(
    plan: &[Mechanism],
    call: Call,
    errno: Errno,
) -> Result<(Report, SendOutcome), Error> {
    let kernel = first_call_fails(call, errno);
    let (socket, mut peer) = tcp_pair();
    let mut channel = Channel::new(&socket, Driver::Caller, SendOptions::default());
    let mut transfer = MemoryTransfer::new([pages(1)], Plan::of(plan));
    while transfer.step_with(&kernel, channel.sink_mut(), socket.as_fd())? != MemoryProgress::Done {
    }
    assert!(!kernel.calls(call).is_empty(), "{call:?} is never made");
    let sent = Sent::from(transfer);
    expect_pattern(&mut peer, 1);
    let outcome = sent.completion().wait(None).expect("no time-out");
    assert_eq!(outcome.bytes, SEND_BYTES as u64);
    Ok((sent.report().clone(), outcome))
}

fn expect_pattern(peer: &mut TcpStream, seed: u8) {
    let mut received = vec![0; SEND_BYTES];
    peer.read_exact(&mut received).expect("every byte");
    assert!(
        received == seeded_pattern(seed),
        "other bytes were received"
    );
}

fn first_call_fails(call: Call, errno: Errno) -> FaultyKernel {
    FaultyKernel::new(vec![FaultRule::once(call, 0, Fault::Fails(errno))])
}

#[test]
fn a_refused_call_falls_back_and_is_reported() {
    let refusals = [
        (MsgZerocopy, Call::SocketCookie, Errno::NOPROTOOPT),
        (MsgZerocopy, Call::LockSocket, Errno::NOLCK),
        (MsgZerocopy, Call::LockSocket, Errno::BUSY),
        (MsgZerocopy, Call::AllowsZerocopy, Errno::NOPROTOOPT),
        (MsgZerocopy, Call::AllowZerocopy, Errno::OPNOTSUPP),
        (MsgZerocopy, Call::AllowZerocopy, Errno::PERM),
        (MsgZerocopy, Call::SendZerocopy, Errno::INVAL),
        (MsgZerocopy, Call::SendZerocopy, Errno::OPNOTSUPP),
        (MsgZerocopy, Call::SendZerocopy, Errno::NOBUFS),
        (Vmsplice, Call::QueuedBytes, Errno::NOTTY),
        (Vmsplice, Call::Pipe, Errno::MFILE),
        (Vmsplice, Call::Pipe, Errno::NFILE),
        (Vmsplice, Call::ResizePipe, Errno::PERM),
        (Vmsplice, Call::Vmsplice, Errno::AGAIN),
        (Vmsplice, Call::Vmsplice, Errno::FAULT),
        (Vmsplice, Call::Vmsplice, Errno::NOSYS),
        (Vmsplice, Call::SpliceOut, Errno::INVAL),
        (Vmsplice, Call::SpliceOut, Errno::NOMEM),
    ];
    for (mechanism, call, errno) in refusals {
        let (report, outcome) = send(&[mechanism, Copy], call, errno).expect("copied");
        assert_eq!(report.by(Copy), SEND_BYTES as u64, "{call:?} {errno:?}");
        let [fallback] = report.fallbacks() else {
            panic!("{call:?} {errno:?}: {report}");
        };
        assert_eq!(
            (fallback.from, fallback.to, fallback.errno, fallback.at),
            (mechanism, Copy, crate::Errno::of(errno), 0)
        );
        assert_eq!(
            (outcome.copied, outcome.reason),
            (SEND_BYTES as u64, FreeReason::Copied)
        );
    }
}

/// `ENOBUFS` is temporary: only the step that fails with it is copied.
#[test]
fn the_step_after_enobufs_is_zero_copy_again() {
    let kernel = first_call_fails(Call::SendZerocopy, Errno::NOBUFS);
    let (socket, _peer) = tcp_pair();
    let mut channel = Channel::new(&socket, Driver::Caller, SendOptions::default());
    for expected in [Copy, MsgZerocopy] {
        let mut transfer = MemoryTransfer::new([pages(0)], Plan::of(&[MsgZerocopy]));
        transfer
            .step_with(&kernel, channel.sink_mut(), socket.as_fd())
            .expect("sent");
        let report = Sent::from(transfer).report().clone();
        assert_eq!(report.by(expected), report.bytes());
        assert!(report.bytes() > 0);
    }
}

#[test]
fn a_broken_connection_is_an_error_that_counts_the_bytes() {
    let failures = [
        (MsgZerocopy, Call::SendZerocopy),
        (Vmsplice, Call::SpliceOut),
        (Copy, Call::SendMemory),
    ];
    for (mechanism, call) in failures {
        for (errno, kind) in [
            (Errno::PIPE, ErrorKind::PeerClosed),
            (Errno::CONNRESET, ErrorKind::PeerClosed),
            (Errno::TIMEDOUT, ErrorKind::Sink),
        ] {
            let error = send(&[mechanism, Copy], call, errno).expect_err("broken");
            assert_eq!((error.kind(), error.moved()), (kind, 0), "{mechanism}");
            assert_eq!(error.mechanism(), Some(mechanism));
            assert_eq!(error.call(), Some(call.system_call()), "{mechanism}");
            assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()));
        }
    }
}

/// A mechanism makes other calls before the one that moves bytes. If such a call is refused, the
/// error must name it.
#[test]
fn an_error_names_the_call_that_prepares_a_mechanism() {
    for (mechanism, call) in [
        (MsgZerocopy, Call::AllowsZerocopy),
        (MsgZerocopy, Call::AllowZerocopy),
        (Vmsplice, Call::Pipe),
        (Vmsplice, Call::Vmsplice),
    ] {
        let error = send(&[mechanism], call, Errno::INVAL).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.mechanism(), Some(mechanism));
        assert_eq!(error.call(), Some(call.system_call()), "{call:?}");
    }
}

#[test]
fn interruptions_change_nothing() {
    for (mechanism, call) in [
        (MsgZerocopy, Call::SendZerocopy),
        (Vmsplice, Call::Vmsplice),
        (Vmsplice, Call::SpliceOut),
        (Vmsplice, Call::ResizePipe),
        (Copy, Call::SendMemory),
    ] {
        let (report, _) = send(&[mechanism], call, Errno::INTR).expect("sent");
        assert_eq!(report.by(mechanism), SEND_BYTES as u64, "{call:?}");
    }
}

/// If 16 or more sends are outstanding, each send first drains the error queue. If a signal
/// interrupts a read of the queue, the read must be repeated.
#[test]
fn an_interrupted_read_of_the_error_queue_is_repeated() {
    const SEND_COUNT: usize = 20;
    let kernel = first_call_fails(Call::ReadErrorQueue, Errno::INTR);
    let (socket, mut peer) = tcp_pair();
    let mut channel = Channel::new(&socket, Driver::Caller, SendOptions::default());
    let memory = pages(1).first(100);
    let mut completions = Vec::new();
    for _ in 0..SEND_COUNT {
        let mut transfer = MemoryTransfer::new([memory.clone()], Plan::of(&[MsgZerocopy]));
        let progress = transfer.step_with(&kernel, channel.sink_mut(), socket.as_fd());
        assert_eq!(progress.expect("sent"), MemoryProgress::Done);
        completions.push(Sent::from(transfer).into_completion());
    }
    let reads = kernel.calls(Call::ReadErrorQueue).len();
    assert!(reads > 1, "the read is not repeated");
    peer.read_exact(&mut [0; SEND_COUNT * 100])
        .expect("every byte");
    for completion in completions {
        assert_eq!(completion.wait(None).expect("an outcome").bytes, 100);
    }
}

/// Bytes that an abandoned send leaves in a pipe must never be sent as part of another send.
#[test]
fn bytes_left_in_a_pipe_are_not_sent_for_other_memory() {
    let kernel = first_call_fails(Call::SpliceOut, Errno::AGAIN);
    let (socket, mut peer) = tcp_pair();
    let mut channel = Channel::new(&socket, Driver::Caller, SendOptions::default());
    let plan = Plan::of(&[Vmsplice]);
    let mut abandoned = MemoryTransfer::new([pages(1)], plan);
    let progress = abandoned
        .step_with(&kernel, channel.sink_mut(), socket.as_fd())
        .expect("blocked");
    assert_eq!(progress, MemoryProgress::Blocked);
    drop(abandoned);
    let mut transfer = MemoryTransfer::new([pages(2)], plan);
    while transfer
        .step_with(&kernel, channel.sink_mut(), socket.as_fd())
        .expect("sent")
        != MemoryProgress::Done
    {}
    expect_pattern(&mut peer, 2);
}

/// A send that would exceed the limit on bytes in flight is copied or waits, depending on the
/// options.
#[test]
fn a_send_beyond_the_in_flight_limit_is_copied_or_waits() {
    for at_limit in [LimitAction::Copy, LimitAction::Wait] {
        let kernel = faultless();
        let (socket, mut peer) = tcp_pair();
        // The peer has announced a receive window of 64 KiB, and this small receive buffer keeps
        // the window from growing. A send is larger than the window, so the peer cannot acknowledge
        // all of it before it reads, however slow this thread is.
        set_socket_recv_buffer_size(&peer, 4096).expect("set");
        let options = SendOptions::default()
            .in_flight_limit(SEND_BYTES as u64)
            .at_limit(at_limit);
        let mut channel = Channel::new(&socket, Driver::Caller, options);
        let plan = Plan::of(&[MsgZerocopy]);
        let mut first = MemoryTransfer::new([pages(1)], plan);
        let done = first.step_with(&kernel, channel.sink_mut(), socket.as_fd());
        assert_eq!(done.expect("sent"), MemoryProgress::Done);
        assert!(
            channel.in_flight_bytes() >= SEND_BYTES as u64,
            "the peer has read nothing"
        );
        let mut second = MemoryTransfer::new([pages(1)], plan);
        let progress = second
            .step_with(&kernel, channel.sink_mut(), socket.as_fd())
            .expect("no failure");
        match at_limit {
            LimitAction::Copy => assert!(Sent::from(second).report().by(Copy) > 0),
            LimitAction::Wait => {
                assert_eq!(progress, MemoryProgress::AtLimit);
                peer.read_exact(&mut vec![0; SEND_BYTES])
                    .expect("every byte");
                Sent::from(first).completion().wait(None).expect("free");
                let progress = second
                    .step_with(&kernel, channel.sink_mut(), socket.as_fd())
                    .expect("sent");
                assert_eq!(progress, MemoryProgress::Done);
            }
        }
    }
}

/// Pages can be reused once the peer has acknowledged their bytes. When the channel is dropped,
/// pages that are not acknowledged are gifted to the kernel: they are never written to again.
#[test]
fn acknowledgements_of_a_remote_peer_free_the_pages() {
    let kernel = faultless();
    let (socket, mut peer) = tcp_pair();
    set_socket_recv_buffer_size(&peer, 64 << 10).expect("set");
    let options = SendOptions::default().assume_remote_peer(true);
    let mut channel = Channel::new(&socket, Driver::Caller, options);
    let plan = Plan::of(&[Vmsplice]);
    // Send until the socket is full. The peer reads nothing yet, so most of the bytes stay
    // unacknowledged.
    let mut sent = Vec::new();
    loop {
        let memory = pages(1);
        let mut transfer = MemoryTransfer::new([memory.clone()], plan);
        let progress = transfer
            .step_with(&kernel, channel.sink_mut(), socket.as_fd())
            .expect("sent");
        let done = Sent::from(transfer);
        sent.push((memory, done.completion().clone(), done.bytes()));
        if progress != MemoryProgress::Done {
            break;
        }
    }
    let (last, completion, _) = &sent[sent.len() - 2];
    assert!(completion.outcome().is_none() && !last.is_permanent());
    assert!(channel.in_flight_bytes() > 0);
    let total: u64 = sent.iter().map(|(_, _, bytes)| bytes).sum();
    peer.read_exact(&mut vec![0; total as usize])
        .expect("every byte");
    for (memory, completion, bytes) in &sent {
        let outcome = completion.wait(None).expect("acknowledged");
        assert_eq!((outcome.bytes, outcome.copied), (*bytes, 0));
        assert!(!memory.is_permanent());
        let expected = if *bytes > 0 {
            FreeReason::Acknowledged
        } else {
            FreeReason::Copied
        };
        assert_eq!(outcome.reason, expected);
    }
    // Only the bytes of the last send that the socket did not accept are left: they are in a pipe.
    // The pipe is dropped when other bytes are sent.
    assert!(channel.in_flight_bytes() < 2 * SEND_BYTES as u64);
    let mut other = MemoryTransfer::new([pages(3).first(1)], Plan::of(&[Copy]));
    let done = other.step_with(&kernel, channel.sink_mut(), socket.as_fd());
    assert_eq!(done.expect("sent"), MemoryProgress::Done);
    assert_eq!(channel.in_flight_bytes(), 0);

    // Send until the socket is full again. The last bytes stay unacknowledged, because the peer
    // reads nothing more.
    let mut last = None;
    let (memory, completion) = loop {
        let memory = pages(2);
        let mut transfer = MemoryTransfer::new([memory.clone()], plan);
        transfer
            .step_with(&kernel, channel.sink_mut(), socket.as_fd())
            .expect("sent");
        let done = Sent::from(transfer);
        if done.bytes() == 0 {
            break last.expect("something was sent");
        }
        last = Some((memory, done.into_completion()));
    };
    drop(channel);
    let outcome = completion.outcome().expect("gifted");
    assert_eq!(outcome.reason, FreeReason::Gifted);
    assert!(memory.is_permanent());
}

/// If the kernel does not report acknowledgements, the pages are gifted: they are never written to
/// again.
#[test]
fn without_acknowledgements_the_pages_are_gifted() {
    let kernel = first_call_fails(Call::Acknowledged, Errno::INVAL);
    let (socket, _peer) = tcp_pair();
    let options = SendOptions::default().assume_remote_peer(true);
    let mut channel = Channel::new(&socket, Driver::Caller, options);
    let memory = pages(1);
    let mut transfer = MemoryTransfer::new([memory.clone()], Plan::of(&[Vmsplice]));
    transfer
        .step_with(&kernel, channel.sink_mut(), socket.as_fd())
        .expect("sent");
    let outcome = Sent::from(transfer)
        .completion()
        .outcome()
        .expect("at once");
    assert_eq!(outcome.reason, FreeReason::Gifted);
    assert!(memory.is_permanent());
}
