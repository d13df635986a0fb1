//! Transfers that are dropped in the middle and taken up again, and what the driver does when idle.

use std::fs::File;
use std::future::{Future, poll_fn};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use uncopied::policy::{Length, Plan};
use uncopied::{Mechanism, SendFile, Transfer, driver};

use crate::harness::{
    Family, assert_all_by, content, file_of, pair, receive, receive_slowly, runtime,
    set_nonblocking, shrink_buffer,
};

const SIZE: usize = 700_001;

fn unix(socket: OwnedFd) -> UnixStream {
    set_nonblocking(&socket);
    UnixStream::from_std(socket.into()).unwrap()
}

fn tcp(socket: OwnedFd) -> TcpStream {
    set_nonblocking(&socket);
    TcpStream::from_std(socket.into()).unwrap()
}

/// Polls a future once and drops it.
async fn once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|context| {
        Poll::Ready(match future.as_mut().poll(context) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        })
    })
    .await
}

/// Polls a future to its end and counts how often.
async fn counting<T>(polls: &mut usize, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    poll_fn(|context| {
        *polls += 1;
        future.as_mut().poll(context)
    })
    .await
}

/// Every run is dropped at the first point where it waits, or after a moment in the middle of one;
/// with the same `Transfer` not a byte is lost or sent twice.
async fn cancelled_often(socket: &impl driver::tokio::Socket, file: &File, mechanism: Mechanism) {
    let length = Length::Exact(SIZE as u64);
    let mut transfer = Transfer::new(0, length, Plan::of(&[mechanism]));
    let mut cancelled = 0;
    loop {
        match once(driver::tokio::run(&mut transfer, file, socket)).await {
            Some(done) => break done.unwrap(),
            None => cancelled += 1,
        }
        // Of another length each time, so that the runs end at all their points.
        let moment = Duration::from_micros(10 + 37 * (cancelled % 29));
        let run = driver::tokio::run(&mut transfer, file, socket);
        match timeout(moment, run).await {
            Ok(done) => break done.unwrap(),
            Err(_) => cancelled += 1,
        }
    }
    assert!(cancelled > 20, "{mechanism}: cancelled {cancelled} times");
    assert_all_by(transfer.report(), mechanism, SIZE as u64, "cancelled");
}

#[test]
fn a_cancelled_transfer_can_be_taken_up_again() {
    let file = file_of(SIZE);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for family in [Family::Unix, Family::Tcp] {
            let (socket, mut peer) = pair(family);
            shrink_buffer(&socket);
            let file = &file;
            std::thread::scope(|scope| {
                let pause = Duration::from_micros(100);
                let receiver =
                    scope.spawn(move || receive_slowly(&mut peer, file, 0, 5_003, pause));
                runtime().block_on(async {
                    match family {
                        Family::Unix => cancelled_often(&unix(socket), file, mechanism).await,
                        Family::Tcp => cancelled_often(&tcp(socket), file, mechanism).await,
                    }
                });
                assert_eq!(receiver.join().unwrap(), SIZE as u64, "{mechanism}");
            });
        }
    }
}

/// How much CPU this thread uses meanwhile.
async fn cpu_of(future: impl Future) -> Duration {
    let now = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
    };
    let before = now();
    future.await;
    now() - before
}

/// A peer that stops reading: the transfer is polled a handful of times, and then sleeps. A driver
/// that does not clear tokio's readiness is polled some 100,000 times. The guard: `WouldBlock` for a
/// step that is blocked, in `driver::tokio::run`.
#[test]
fn a_peer_that_stops_reading_costs_nothing() {
    let file = file_of(16 << 20);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for family in [Family::Unix, Family::Tcp] {
            let (socket, _peer) = pair(family);
            let (mut polls, what) = (0, SendFile::new(&file).force_mechanisms(&[mechanism]));
            let used = runtime().block_on(async {
                let sending = async {
                    match family {
                        Family::Unix => what.to_tokio(&unix(socket)).await,
                        Family::Tcp => what.to_tokio(&tcp(socket)).await,
                    }
                };
                let mut sending = pin!(counting(&mut polls, sending));
                // What the socket takes by itself, it takes at once.
                let filling = timeout(Duration::from_millis(200), sending.as_mut());
                assert!(filling.await.is_err(), "16 MiB fitted into the socket");
                cpu_of(timeout(Duration::from_millis(300), sending)).await
            });
            // One for each 2 MiB of the socket's buffers, one for each timer.
            assert!(polls < 50, "{mechanism} {family:?}: {polls} polls");
            assert!(used < Duration::from_millis(100), "{used:?} of CPU");
        }
    }
}

/// After a transfer the socket lies still: whoever waits for the peer to say something is not woken,
/// and the socket can be used as ever.
#[test]
fn an_idle_socket_is_not_woken_after_a_transfer() {
    use std::io::{Read, Write};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let file = file_of(SIZE);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        let (socket, mut peer) = pair(Family::Tcp);
        let expected = content(SIZE);
        let receiver = std::thread::spawn(move || {
            let mut received = vec![0; SIZE];
            peer.read_exact(&mut received).unwrap();
            assert!(received == expected);
            std::thread::sleep(Duration::from_millis(300));
            peer.write_all(b"thanks").unwrap();
            let mut rest = Vec::new();
            peer.read_to_end(&mut rest).unwrap();
            rest
        });
        runtime().block_on(async {
            let mut socket = tcp(socket);
            let what = SendFile::new(&file).force_mechanisms(&[mechanism]);
            let report = what.to_tokio(&socket).await.unwrap();
            assert_all_by(&report, mechanism, SIZE as u64, "before idling");

            let (mut polls, mut answer) = (0, [0; 6]);
            let reading = counting(&mut polls, socket.read_exact(&mut answer));
            let used = cpu_of(reading).await;
            assert_eq!(&answer, b"thanks");
            assert!(polls < 10, "{mechanism}: {polls} polls");
            assert!(used < Duration::from_millis(100), "{used:?} of CPU");
            socket.write_all(b"bye").await.unwrap();
        });
        assert_eq!(receiver.join().unwrap(), b"bye");
    }
}

/// The last bytes arrive at once, not 200 ms later. Twenty transfers of 1 ms each are far from one of
/// 200 ms, also on a machine that is busy.
#[test]
fn the_last_bytes_are_not_held_back() {
    use std::io::Read;
    use std::time::Instant;

    let size = 100_001;
    let file = file_of(size);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for length in [Length::UntilEof, Length::Exact(size as u64)] {
            let (socket, mut peer) = pair(Family::Tcp);
            rustix::net::sockopt::set_tcp_nodelay(&socket, true).unwrap();
            let mut times: Vec<Duration> = Vec::new();
            runtime().block_on(async {
                let socket = tcp(socket);
                for _ in 0..20 {
                    let start = Instant::now();
                    let send = SendFile::new(&file)
                        .force_mechanisms(&[mechanism])
                        .length(length);
                    send.to_tokio(&socket).await.unwrap();
                    let mut received = vec![0; size];
                    peer.read_exact(&mut received).unwrap();
                    times.push(start.elapsed());
                }
            });
            times.sort();
            assert!(
                times[10] < Duration::from_millis(40),
                "{mechanism}: {times:?}"
            );
        }
    }
}

/// A socket that is split lends itself by its halves, and reading goes on meanwhile.
#[test]
fn the_half_of_a_socket_can_be_sent_to() {
    let file = file_of(SIZE);
    let (socket, mut peer) = pair(Family::Unix);
    let file = &file;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || receive(&mut peer, file, 0));
        runtime().block_on(async {
            let (_reader, writer) = unix(socket).into_split();
            let stream: &UnixStream = writer.as_ref();
            let report = SendFile::new(file).to_tokio(stream).await.unwrap();
            assert_all_by(&report, Mechanism::Sendfile, SIZE as u64, "a half");
        });
        assert_eq!(receiver.join().unwrap(), SIZE as u64);
    });
}
