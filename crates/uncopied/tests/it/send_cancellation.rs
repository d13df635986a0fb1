//! Sends of memory on tokio whose future is dropped before the send is complete.

use std::future::{Future, poll_fn};
use std::io::Read;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use uncopied::arena::Pages;
use uncopied::tokio::Sender;
use uncopied::{LimitAction, Mechanism, SendOptions};

use crate::harness::{
    Family, HANG_TIMEOUT, expect_bytes, expect_eof, pattern, pattern_pages, runtime,
    set_nonblocking, small_buffer_pair,
};

/// The size of a send: more than the sockets hold, and more than the limit on bytes in flight. So a
/// send has to wait many times, both for the peer and at the limit.
const SEND_BYTES: usize = 2_000_001;

const MECHANISMS: [Mechanism; 3] = [Mechanism::SendZc, Mechanism::Vmsplice, Mechanism::Copy];

/// Polls the future of a send `polls` times, and then drops it. The peer reads a little between the
/// polls. Returns whether the send completed before it was dropped.
///
/// The bytes that have arrived must be a prefix of the bytes of the send. Afterwards, the sender
/// must be able to send other bytes, and the pages must become reusable.
async fn drop_after(polls: usize, mechanism: Mechanism, at_limit: LimitAction) -> bool {
    let (socket, mut peer) = small_buffer_pair(Family::Tcp);
    set_nonblocking(&socket);
    let socket = TcpStream::from_std(socket.into()).unwrap();
    let options = SendOptions::default()
        .force_mechanisms(&[mechanism])
        .in_flight_limit(300_000)
        .at_limit(at_limit);
    let mut sender = Sender::with(socket, options);
    let pages = pattern_pages(SEND_BYTES);
    let mut received = Vec::new();
    let mut is_done = false;
    {
        let mut sending = pin!(sender.send(pages.clone()));
        for nth in 0..polls {
            let poll = poll_fn(|context| Poll::Ready(sending.as_mut().poll(context))).await;
            if let Poll::Ready(sent) = poll {
                assert_eq!(sent.unwrap().bytes(), SEND_BYTES as u64);
                is_done = true;
                break;
            }
            if nth % 3 == 2 {
                // Let the peer read the bytes that have arrived.
                let available = rustix::io::ioctl_fionread(&peer).unwrap() as usize;
                let mut bytes = vec![0; available];
                peer.read_exact(&mut bytes).unwrap();
                received.extend(bytes);
            }
            tokio::task::yield_now().await;
        }
    }
    let reported = sender.report().bytes();
    let receiver = std::thread::spawn(move || {
        peer.read_to_end(&mut received).unwrap();
        received
    });
    let next = pattern_pages(1000);
    sender.send(next).await.unwrap();
    drop(sender);
    let received = receiver.join().unwrap();
    let bytes = received.len() as u64 - 1000;
    assert!(
        bytes >= reported && bytes <= reported + (2 << 20),
        "{bytes} bytes arrived, {reported} were reported"
    );
    expect_bytes(&mut &received[..bytes as usize], &pattern(bytes as usize));
    let mut rest = &received[bytes as usize..];
    expect_bytes(&mut rest, &pattern(1000));
    expect_eof(&mut rest);
    let mut pages = Some(pages);
    if mechanism == Mechanism::Vmsplice && bytes > 0 {
        assert!(pages.is_some_and(|pages| pages.is_permanent()));
    } else {
        // Sleep between the attempts, because the notifications are processed by another task of
        // this runtime, which must get a chance to run.
        let become_reusable = async {
            while let Some(Err(in_flight)) = pages.take().map(Pages::try_into_buffer) {
                pages = Some(in_flight);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(HANG_TIMEOUT, become_reusable)
            .await
            .expect("the pages become reusable");
    }
    is_done
}

#[test]
fn a_send_can_be_dropped_at_every_point_where_it_waits() {
    for mechanism in MECHANISMS {
        for at_limit in [LimitAction::Copy, LimitAction::Wait] {
            let mut polls = 0;
            // Drop the send after each of the first few polls, and then at growing intervals.
            while !runtime().block_on(drop_after(polls, mechanism, at_limit)) {
                polls += 1 + polls / 12;
                assert!(polls < 100_000, "{mechanism} does not end");
            }
            assert!(polls > 4, "{mechanism} waited {polls} times");
        }
    }
}
