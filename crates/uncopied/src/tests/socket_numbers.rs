//! Checks that only one sender uses the numbers that say which sends on a socket are complete: the
//! numbers that the kernel gives to `MSG_ZEROCOPY` sends, and the counts of acknowledged bytes. If
//! two senders used them, the memory of a send could be reused too early.

use std::cell::Cell;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::faulty_kernel::{Call, Fault, FaultRule, FaultyKernel};
use super::tcp_pair;
use crate::arena::{Memory, PageBuffer};
use crate::in_flight::FreeReason;
use crate::mechanism::memory_to_socket::msg_zerocopy::MsgZerocopy;
use crate::mechanism::{Outcome, Status};
use crate::policy::{Driver, Mechanism, Plan};
use crate::send::{Channel, SendOptions, Sent};
use crate::sys::fork::tests::in_child;
use crate::sys::{Kernel, Linux};
use crate::transfer::{MemoryProgress, MemoryTransfer};

const SEND_BYTES: usize = 5000;

/// How long a thread pauses in the middle of its claim, so that another thread can get to the same
/// point. The other thread gets there only if nothing excludes it. So if claims are implemented
/// correctly, the pause lasts this long.
const RIVAL_TIMEOUT: Duration = Duration::from_millis(200);

fn pages() -> Memory {
    let buffer = PageBuffer::zeroed(SEND_BYTES).expect("a buffer");
    Memory::Pages(buffer.freeze())
}

/// Claims the socket, and returns the errno if that fails.
fn claim(kernel: &impl Kernel, socket: BorrowedFd<'_>) -> Result<(), Errno> {
    match MsgZerocopy::new(kernel, socket) {
        Ok(_) => Ok(()),
        Err(Outcome {
            status: Status::Unsupported(errno),
            ..
        }) => Err(errno),
        Err(outcome) => panic!("unexpected: {outcome:?}"),
    }
}

/// Two threads claim the same socket, and only one of them may succeed. Each thread pauses after it
/// has checked `SO_ZEROCOPY` and before it sets it, until the other thread is at the same point or
/// [`RIVAL_TIMEOUT`] has passed.
#[test]
fn only_one_of_two_threads_claims_a_socket() {
    let (socket, _peer) = tcp_pair();
    let claiming = Arc::new(AtomicUsize::new(0));
    let claimed: Vec<Result<(), Errno>> = thread::scope(|scope| {
        let threads = [(), ()].map(|()| {
            let claiming = Arc::clone(&claiming);
            let clone = socket.try_clone().expect("duplicated");
            scope.spawn(move || {
                let kernel = FaultyKernel::new(Vec::new()).before(Call::AllowZerocopy, move || {
                    claiming.fetch_add(1, Ordering::SeqCst);
                    let began = Instant::now();
                    while claiming.load(Ordering::SeqCst) < 2 && began.elapsed() < RIVAL_TIMEOUT {
                        thread::yield_now();
                    }
                });
                claim(&kernel, clone.as_fd())
            })
        });
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().expect("no panic");
        threads.map(join).into()
    });
    assert!(claimed.contains(&Ok(())), "{claimed:?}");
    assert!(claimed.contains(&Err(Errno::BUSY)), "{claimed:?}");
}

/// A parent process forks in the middle of its claim, and the child tries to claim the same socket.
/// The child must fail with `EBUSY`, and the parent must succeed.
#[test]
fn a_child_cannot_claim_a_socket_together_with_its_parent() {
    let (socket, _peer) = tcp_pair();
    let childs_errno = Rc::new(Cell::new(0));
    let clone = socket.try_clone().expect("duplicated");
    let kernel = FaultyKernel::new(Vec::new()).before(Call::AllowZerocopy, {
        let childs_errno = Rc::clone(&childs_errno);
        move || {
            let claim = || match claim(&Linux, clone.as_fd()) {
                Ok(()) => 0,
                Err(errno) => u8::try_from(errno.raw_os_error()).unwrap_or(255),
            };
            childs_errno.set(in_child(claim));
        }
    });
    assert_eq!(claim(&kernel, socket.as_fd()), Ok(()));
    assert_eq!(i32::from(childs_errno.get()), Errno::BUSY.raw_os_error());
}

#[test]
fn a_socket_that_another_process_is_claiming_is_busy() {
    for errno in [Errno::AGAIN, Errno::ACCESS] {
        let (socket, _peer) = tcp_pair();
        let rule = FaultRule::once(Call::LockSocket, 0, Fault::Fails(errno));
        let kernel = FaultyKernel::new(vec![rule]);
        assert_eq!(claim(&kernel, socket.as_fd()), Err(Errno::BUSY));
        // The failed claim must not have set `SO_ZEROCOPY`, so a second claim succeeds.
        assert_eq!(claim(&kernel, socket.as_fd()), Ok(()));
    }
}

/// A claim that fails releases its lock on the socket, so another process can claim the socket.
#[test]
fn a_failed_claim_leaves_the_socket_unclaimed() {
    let (socket, _peer) = tcp_pair();
    let rule = FaultRule::once(Call::AllowZerocopy, 0, Fault::Fails(Errno::NOMEM));
    let kernel = FaultyKernel::new(vec![rule]);
    assert_eq!(claim(&kernel, socket.as_fd()), Err(Errno::NOMEM));
    let in_a_child = || u8::from(MsgZerocopy::new(&Linux, socket.as_fd()).is_ok());
    assert_eq!(in_child(in_a_child), 1);
}

/// A channel tracks only the acknowledgements of the first socket that it sends to. They say
/// nothing about pages sent on a second socket, so those pages must be gifted: never written to
/// again.
#[test]
fn acknowledgements_of_another_socket_free_no_pages() {
    let kernel = FaultyKernel::new(Vec::new());
    let ((first, _first_peer), (second, _second_peer)) = (tcp_pair(), tcp_pair());
    let options = SendOptions::default().assume_remote_peer(true);
    let mut channel = Channel::new(&first, Driver::Caller, options);
    let mut send = |socket: &TcpStream| {
        let memory = pages();
        let plan = Plan::of(&[Mechanism::Vmsplice]);
        let mut transfer = MemoryTransfer::new([memory.clone()], plan);
        transfer
            .step_with(&kernel, channel.sink_mut(), socket.as_fd())
            .expect("sent");
        let outcome = Sent::from(transfer).completion().wait(None).expect("free");
        (outcome.reason, memory.is_permanent())
    };
    assert_eq!(send(&first), (FreeReason::Acknowledged, false));
    assert_eq!(send(&second), (FreeReason::Gifted, true));
    assert_eq!(send(&first), (FreeReason::Acknowledged, false));
}

/// The first step fills the pipe but finds its socket full. The second step sends the bytes in the
/// pipe to another socket, whose acknowledgements are not tracked. So the pages must be gifted.
#[test]
fn pages_in_a_pipe_are_gifted_if_another_socket_gets_them() {
    let rule = FaultRule::once(Call::SpliceOut, 0, Fault::Fails(Errno::AGAIN));
    let kernel = FaultyKernel::new(vec![rule]);
    let ((first, _first_peer), (second, _second_peer)) = (tcp_pair(), tcp_pair());
    let options = SendOptions::default().assume_remote_peer(true);
    let mut channel = Channel::new(&first, Driver::Caller, options);
    let memory = pages();
    let mut transfer = MemoryTransfer::new([memory.clone()], Plan::of(&[Mechanism::Vmsplice]));
    for socket in [&first, &second] {
        transfer
            .step_with(&kernel, channel.sink_mut(), socket.as_fd())
            .expect("no failure");
    }
    let sent = Sent::from(transfer);
    assert_eq!(sent.bytes(), SEND_BYTES as u64);
    let outcome = sent.completion().outcome().expect("at once");
    assert_eq!(
        (outcome.reason, memory.is_permanent()),
        (FreeReason::Gifted, true)
    );
}

/// With a channel that its parent has created, a forked child must use neither the numbers of
/// `MSG_ZEROCOPY` sends nor the counts of acknowledged bytes. It copies, or gifts the pages.
#[test]
fn a_child_does_not_use_the_numbers_of_its_parent() {
    let (socket, _peer) = tcp_pair();
    let options = SendOptions::default().assume_remote_peer(true);
    let mut channel = Channel::new(&socket, Driver::Caller, options);
    // Allocate the pages before the fork, and keep handles to them in `kept`, so that the child
    // needs no arena of its own and releases none of the pages that it has inherited.
    let kept = [(), ()].map(|()| pages());
    let mut sends: Vec<MemoryTransfer> = [Mechanism::Vmsplice, Mechanism::MsgZerocopy]
        .into_iter()
        .zip(&kept)
        .map(|(mechanism, memory)| {
            let plan = Plan::of(&[mechanism, Mechanism::Copy]);
            // The parent sends first, so that the child inherits numbers.
            let mut transfer = MemoryTransfer::new([memory.clone()], plan);
            let progress = transfer.step(channel.sink_mut(), socket.as_fd());
            assert_eq!(progress.expect("sent"), MemoryProgress::Done);
            MemoryTransfer::new([memory.clone()], plan)
        })
        .collect();
    let send_in_child = || {
        for transfer in &mut sends {
            while transfer
                .step(channel.sink_mut(), socket.as_fd())
                .expect("no failure")
                != MemoryProgress::Done
            {}
        }
        let reasons = sends.drain(..).map(|transfer| {
            let outcome = Sent::from(transfer).completion().outcome();
            outcome.map(|outcome| outcome.reason)
        });
        let expected = [FreeReason::Gifted, FreeReason::Copied].map(Some);
        assert_eq!(reasons.collect::<Vec<_>>(), expected);
        assert_eq!(
            channel.report().fallbacks()[0].errno,
            crate::Errno::of(Errno::BUSY)
        );
        0
    };
    assert_eq!(in_child(send_in_child), 0);
    drop(kept);
}
