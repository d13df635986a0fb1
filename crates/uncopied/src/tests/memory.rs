//! Every arm of the errno tables of the mechanisms for memory.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;

use rustix::io::Errno;

use super::kernel::{Call, Fault, FaultRule, Faulty};
use crate::ErrorKind;
use crate::arena::{Memory, PageBuffer};
use crate::error::Error;
use crate::in_flight::{FreeReason, LimitAction, SendOutcome};
use crate::policy::Mechanism::{Copy, MsgZerocopy, Vmsplice};
use crate::policy::{Driver, Mechanism, Plan};
use crate::report::Report;
use crate::send::{Channel, SendOptions, Sent};
use crate::transfer::{MemoryProgress, MemoryTransfer};

const LEN: usize = 100_000;

fn pages(seed: u8) -> Memory {
    let mut buffer = PageBuffer::zeroed(LEN).expect("taken");
    for (at, byte) in buffer.iter_mut().enumerate() {
        *byte = (at % 251) as u8 ^ seed;
    }
    Memory::Pages(buffer.freeze())
}

fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("an address");
    let socket = TcpStream::connect(address).expect("connected");
    socket.set_nonblocking(true).expect("set");
    (socket, listener.accept().expect("accepted").0)
}

/// Sends by this plan while the first call of a kind fails, and compares what arrives. In a thread of its
/// own, which has no pipe to spare from a send before.
fn send(plan: &[Mechanism], call: Call, errno: Errno) -> Result<(Report, SendOutcome), Error> {
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send_here(plan, call, errno));
        sending.join().expect("no assertion failed")
    })
}

fn send_here(plan: &[Mechanism], call: Call, errno: Errno) -> Result<(Report, SendOutcome), Error> {
    let kernel = Faulty::new(fails(call, errno));
    let (socket, mut peer) = tcp();
    let mut channel = Channel::new(&socket, Driver::Caller, SendOptions::default());
    let memory = pages(1);
    let mut transfer = MemoryTransfer::new([memory], Plan::of(plan));
    while transfer.step_with(&kernel, channel.sink_mut(), socket.as_fd())? != MemoryProgress::Done {
    }
    assert!(!kernel.made(call).is_empty(), "{call:?} is never made");
    let sent = Sent::from(transfer);
    let mut got = vec![0; LEN];
    peer.read_exact(&mut got).expect("all of it");
    assert!(
        got.iter()
            .enumerate()
            .all(|(at, byte)| *byte == (at % 251) as u8 ^ 1)
    );
    let settled = sent.completion().wait(None).expect("no time-out");
    assert_eq!(settled.bytes, LEN as u64);
    Ok((sent.report().clone(), settled))
}

fn fails(call: Call, errno: Errno) -> Vec<FaultRule> {
    vec![FaultRule::once(call, 0, Fault::Fails(errno))]
}

#[test]
fn what_is_refused_steps_down_and_says_why() {
    let refusals = [
        (MsgZerocopy, Call::AllowsZerocopy, Errno::NOPROTOOPT),
        (MsgZerocopy, Call::AllowZerocopy, Errno::OPNOTSUPP),
        (MsgZerocopy, Call::AllowZerocopy, Errno::PERM),
        (MsgZerocopy, Call::SendZerocopy, Errno::INVAL),
        (MsgZerocopy, Call::SendZerocopy, Errno::OPNOTSUPP),
        (MsgZerocopy, Call::SendZerocopy, Errno::NOBUFS),
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
        let (report, settled) = send(&[mechanism, Copy], call, errno).expect("copied");
        assert_eq!(report.by(Copy), LEN as u64, "{call:?} {errno:?}");
        let [step] = report.fallbacks() else {
            panic!("{call:?} {errno:?}: {report}");
        };
        assert_eq!(
            (step.from, step.to, step.errno, step.at),
            (mechanism, Copy, errno, 0)
        );
        assert_eq!(
            (settled.copied, settled.reason),
            (LEN as u64, FreeReason::Copied)
        );
    }
}

/// ENOBUFS passes: only the send that met it is copied.
#[test]
fn after_enobufs_the_next_step_is_lent_again() {
    let kernel = Faulty::new(fails(Call::SendZerocopy, Errno::NOBUFS));
    let (socket, _peer) = tcp();
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
fn what_breaks_the_connection_is_an_error_that_counts() {
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
        }
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
        assert_eq!(report.by(mechanism), LEN as u64, "{call:?}");
    }
}

/// From the sixteenth outstanding send on, each looks at the error queue first.
#[test]
fn a_look_at_the_error_queue_that_is_interrupted_goes_on() {
    const SENDS: usize = 20;
    let kernel = Faulty::new(fails(Call::ReadErrorQueue, Errno::INTR));
    let (socket, mut peer) = tcp();
    let mut channel = Channel::new(&socket, Driver::Caller, SendOptions::default());
    let memory = pages(1).first(100);
    let mut completions = Vec::new();
    for _ in 0..SENDS {
        let mut transfer = MemoryTransfer::new([memory.clone()], Plan::of(&[MsgZerocopy]));
        let progress = transfer.step_with(&kernel, channel.sink_mut(), socket.as_fd());
        assert_eq!(progress.expect("sent"), MemoryProgress::Done);
        completions.push(Sent::from(transfer).into_completion());
    }
    let looks = kernel.made(Call::ReadErrorQueue).len();
    assert!(looks > 1, "it is not taken up again");
    peer.read_exact(&mut [0; SENDS * 100]).expect("all of it");
    for completion in completions {
        assert_eq!(completion.wait(None).expect("settled").bytes, 100);
    }
}

/// Whatever a pipe holds of one send never goes out in another.
#[test]
fn what_a_pipe_holds_is_not_sent_for_other_memory() {
    let blocked = vec![FaultRule::once(
        Call::SpliceOut,
        0,
        Fault::Fails(Errno::AGAIN),
    )];
    let kernel = Faulty::new(blocked);
    let (socket, mut peer) = tcp();
    let mut channel = Channel::new(&socket, Driver::Caller, SendOptions::default());
    let plan = Plan::of(&[Vmsplice]);
    let mut given_up = MemoryTransfer::new([pages(1)], plan);
    let progress = given_up
        .step_with(&kernel, channel.sink_mut(), socket.as_fd())
        .expect("blocked");
    assert_eq!(progress, MemoryProgress::Blocked);
    drop(given_up);
    let mut transfer = MemoryTransfer::new([pages(2)], plan);
    while transfer
        .step_with(&kernel, channel.sink_mut(), socket.as_fd())
        .expect("sent")
        != MemoryProgress::Done
    {}
    let mut got = vec![0; LEN];
    peer.read_exact(&mut got).expect("all of it");
    assert!(
        got.iter()
            .enumerate()
            .all(|(at, byte)| *byte == (at % 251) as u8 ^ 2)
    );
}

/// What is over the quota is copied, or waits, as the options say.
#[test]
fn beyond_the_quota_a_send_is_copied_or_waits() {
    for at_limit in [LimitAction::Copy, LimitAction::Wait] {
        let kernel = Faulty::new(Vec::new());
        let (socket, mut peer) = tcp();
        let options = SendOptions::default()
            .in_flight_limit(LEN as u64)
            .at_limit(at_limit);
        let mut channel = Channel::new(&socket, Driver::Caller, options);
        let plan = Plan::of(&[MsgZerocopy]);
        let mut first = MemoryTransfer::new([pages(1)], plan);
        let done = first.step_with(&kernel, channel.sink_mut(), socket.as_fd());
        assert_eq!(done.expect("sent"), MemoryProgress::Done);
        assert!(
            channel.in_flight_bytes() >= LEN as u64,
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
                peer.read_exact(&mut vec![0; LEN]).expect("all of it");
                Sent::from(first).completion().wait(None).expect("free");
                let progress = second
                    .step_with(&kernel, channel.sink_mut(), socket.as_fd())
                    .expect("sent");
                assert_eq!(progress, MemoryProgress::Done);
            }
        }
    }
}

/// What the peer has acknowledged comes back; what it has not is given away with the sender.
#[test]
fn acknowledged_bytes_free_the_pages_of_a_remote_peer() {
    let kernel = Faulty::new(Vec::new());
    let (socket, mut peer) = tcp();
    rustix::net::sockopt::set_socket_recv_buffer_size(&peer, 64 << 10).expect("set");
    let options = SendOptions::default().assume_remote_peer(true);
    let mut channel = Channel::new(&socket, Driver::Caller, options);
    let plan = Plan::of(&[Vmsplice]);
    // More than the peer takes without reading: most of it stays here, and is not acknowledged.
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
        .expect("all of it");
    for (memory, completion, bytes) in &sent {
        let settled = completion.wait(None).expect("acknowledged");
        assert_eq!((settled.bytes, settled.copied), (*bytes, 0));
        assert!(!memory.is_permanent());
        let expected = if *bytes > 0 {
            FreeReason::Acknowledged
        } else {
            FreeReason::Copied
        };
        assert_eq!(settled.reason, expected);
    }
    assert_eq!(channel.in_flight_bytes(), 0);

    // The peer reads no more: the window is full again before long.
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
    let settled = completion.outcome().expect("given away");
    assert_eq!(settled.reason, FreeReason::Gifted);
    assert!(memory.is_permanent());
}

/// Whatever cannot be asked about the connection, the pages are never written to again.
#[test]
fn without_an_answer_nothing_comes_back() {
    let kernel = Faulty::new(fails(Call::Acknowledged, Errno::INVAL));
    let (socket, _peer) = tcp();
    let options = SendOptions::default().assume_remote_peer(true);
    let mut channel = Channel::new(&socket, Driver::Caller, options);
    let memory = pages(1);
    let mut transfer = MemoryTransfer::new([memory.clone()], Plan::of(&[Vmsplice]));
    transfer
        .step_with(&kernel, channel.sink_mut(), socket.as_fd())
        .expect("sent");
    let settled = Sent::from(transfer)
        .completion()
        .outcome()
        .expect("at once");
    assert_eq!(settled.reason, FreeReason::Gifted);
    assert!(memory.is_permanent());
}
