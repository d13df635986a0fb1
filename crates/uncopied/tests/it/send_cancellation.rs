//! Sends of memory on tokio that are dropped in the middle.

use std::future::{Future, poll_fn};
use std::io::Read;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use uncopied::arena::Pages;
use uncopied::{LimitAction, Mechanism, SendOptions, Sender};

use crate::harness::{
    Family, HANG, content, expect_bytes, expect_end, narrow_pair, pages_of, runtime,
    set_nonblocking,
};

/// More than the sockets hold, so that the send waits for the peer, and for its quota, many times.
const LEN: usize = 2_000_001;

const MECHANISMS: [Mechanism; 3] = [Mechanism::SendZc, Mechanism::Vmsplice, Mechanism::Copy];

/// A send is polled `turns` times, in between the peer reads something, and then it is dropped. Answers
/// whether it had come to its end.
///
/// Whatever has arrived is the beginning of what was sent, the sender goes on with other bytes behind it,
/// and the pages come back.
async fn dropped_after(turns: usize, mechanism: Mechanism, at_limit: LimitAction) -> bool {
    let (socket, mut peer) = narrow_pair(Family::Tcp);
    set_nonblocking(&socket);
    let socket = TcpStream::from_std(socket.into()).unwrap();
    let options = SendOptions::default()
        .force_mechanisms(&[mechanism])
        .in_flight_limit(300_000)
        .at_limit(at_limit);
    let mut sender = Sender::with(socket, options);
    let pages = pages_of(LEN);
    let mut received = Vec::new();
    let mut is_done = false;
    {
        let mut sending = pin!(sender.send_tokio(pages.clone()));
        for turn in 0..turns {
            let poll = poll_fn(|context| Poll::Ready(sending.as_mut().poll(context))).await;
            if let Poll::Ready(sent) = poll {
                assert_eq!(sent.unwrap().bytes(), LEN as u64);
                is_done = true;
                break;
            }
            if turn % 3 == 2 {
                // What a task of the peer's would do meanwhile.
                let waiting = rustix::io::ioctl_fionread(&peer).unwrap() as usize;
                let mut some = vec![0; waiting];
                peer.read_exact(&mut some).unwrap();
                received.extend(some);
            }
            tokio::task::yield_now().await;
        }
    }
    let told = sender.report().bytes();
    let rest = std::thread::spawn(move || {
        peer.read_to_end(&mut received).unwrap();
        received
    });
    let last = pages_of(1000);
    sender.send_tokio(last).await.unwrap();
    drop(sender);
    let received = rest.join().unwrap();
    let bytes = received.len() as u64 - 1000;
    assert!(
        bytes >= told && bytes <= told + (2 << 20),
        "{bytes}, {told} were told"
    );
    expect_bytes(&mut &received[..bytes as usize], &content(bytes as usize));
    let mut end = &received[bytes as usize..];
    expect_bytes(&mut end, &content(1000));
    expect_end(&mut end);
    let mut pages = Some(pages);
    if mechanism == Mechanism::Vmsplice && bytes > 0 {
        assert!(pages.is_some_and(|pages| pages.is_permanent()));
    } else {
        // The runtime takes the notices in: it must have its turns.
        let coming_back = async {
            while let Some(Err(still_lent)) = pages.take().map(Pages::try_into_buffer) {
                pages = Some(still_lent);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(HANG, coming_back)
            .await
            .expect("the pages come back");
    }
    is_done
}

#[test]
fn a_send_may_be_dropped_at_every_point_where_it_waits() {
    for mechanism in MECHANISMS {
        for at_limit in [LimitAction::Copy, LimitAction::Wait] {
            let mut turns = 0;
            // Every point at first, and then some.
            while !runtime().block_on(dropped_after(turns, mechanism, at_limit)) {
                turns += 1 + turns / 12;
                assert!(turns < 100_000, "{mechanism} does not come to an end");
            }
            assert!(turns > 4, "{mechanism} waited {turns} times");
        }
    }
}
