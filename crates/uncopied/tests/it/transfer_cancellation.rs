//! Transfers on tokio that are dropped and resumed, and the CPU time that an idle transfer or
//! socket uses.

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
use uncopied::{Mechanism, SendFile, Transfer};

use crate::harness::{
    Family, assert_all_sent_by, minimize_send_buffer, pattern, pattern_file, receive,
    receive_slowly, runtime, set_nonblocking, socket_pair,
};

const FILE_BYTES: usize = 700_001;

fn tokio_unix(socket: OwnedFd) -> UnixStream {
    set_nonblocking(&socket);
    UnixStream::from_std(socket.into()).unwrap()
}

fn tokio_tcp(socket: OwnedFd) -> TcpStream {
    set_nonblocking(&socket);
    TcpStream::from_std(socket.into()).unwrap()
}

/// Polls a future once, and drops it. Returns its output if it was ready.
async fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|context| {
        Poll::Ready(match future.as_mut().poll(context) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

/// Awaits `future`, and adds the number of times that it is polled to `polls`.
async fn count_polls<T>(polls: &mut usize, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    poll_fn(|context| {
        *polls += 1;
        future.as_mut().poll(context)
    })
    .await
}

/// Runs one `Transfer` to its end, but drops the future of each run early, alternately at the first
/// point where it waits and after a short time. No byte may be lost or sent twice.
async fn run_with_cancellations(
    socket: &impl uncopied::tokio::Socket,
    file: &File,
    mechanism: Mechanism,
) {
    let length = Length::Exact(FILE_BYTES as u64);
    let mut transfer = Transfer::new(0, length, Plan::of(&[mechanism]));
    let mut cancelled = 0;
    loop {
        match poll_once(uncopied::tokio::run(&mut transfer, file, socket)).await {
            Some(result) => break result.unwrap(),
            None => cancelled += 1,
        }
        // Vary the time limit, so that the runs are dropped at different points.
        let limit = Duration::from_micros(10 + 37 * (cancelled % 29));
        let run = uncopied::tokio::run(&mut transfer, file, socket);
        match timeout(limit, run).await {
            Ok(result) => break result.unwrap(),
            Err(_) => cancelled += 1,
        }
    }
    assert!(cancelled > 20, "{mechanism}: cancelled {cancelled} times");
    assert_all_sent_by(transfer.report(), mechanism, FILE_BYTES as u64, "cancelled");
}

#[test]
fn a_cancelled_transfer_can_be_resumed() {
    let file = pattern_file(FILE_BYTES);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for family in [Family::Unix, Family::Tcp] {
            let (socket, mut peer) = socket_pair(family);
            minimize_send_buffer(&socket);
            let file = &file;
            std::thread::scope(|scope| {
                let pause = Duration::from_micros(100);
                let receiver =
                    scope.spawn(move || receive_slowly(&mut peer, file, 0, 5_003, pause));
                runtime().block_on(async {
                    match family {
                        Family::Unix => {
                            run_with_cancellations(&tokio_unix(socket), file, mechanism).await
                        }
                        Family::Tcp => {
                            run_with_cancellations(&tokio_tcp(socket), file, mechanism).await
                        }
                    }
                });
                assert_eq!(receiver.join().unwrap(), FILE_BYTES as u64, "{mechanism}");
            });
        }
    }
}

/// Returns the CPU time that this thread uses while it awaits `future`.
async fn cpu_time_of(future: impl Future) -> Duration {
    let now = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
    };
    let before = now();
    future.await;
    now() - before
}

/// If the peer stops reading, the transfer must sleep after only a few polls.
///
/// Fails if the closure in `uncopied::tokio::run` does not return `WouldBlock` for a blocked step:
/// tokio would then still consider the socket writable, and the transfer would be polled about
/// 100,000 times.
#[test]
fn a_peer_that_stops_reading_costs_no_cpu_time() {
    let file = pattern_file(16 << 20);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for family in [Family::Unix, Family::Tcp] {
            let (socket, _peer) = socket_pair(family);
            let (mut polls, send_file) = (0, SendFile::new(&file).force_mechanisms(&[mechanism]));
            let used = runtime().block_on(async {
                let sending = async {
                    match family {
                        Family::Unix => send_file.to_tokio(&tokio_unix(socket)).await,
                        Family::Tcp => send_file.to_tokio(&tokio_tcp(socket)).await,
                    }
                };
                let mut sending = pin!(count_polls(&mut polls, sending));
                // First fill the socket buffers.
                let filling = timeout(Duration::from_millis(200), sending.as_mut());
                assert!(filling.await.is_err(), "16 MiB fit into the socket");
                cpu_time_of(timeout(Duration::from_millis(300), sending)).await
            });
            // Expect one poll for each 2 MiB sent while the buffers fill, and one for each of the
            // two timers. Allow a few more.
            assert!(polls < 50, "{mechanism} {family:?}: {polls} polls");
            assert!(used < Duration::from_millis(100), "{used:?} of CPU");
        }
    }
}

/// After a transfer, a task that reads from the socket must not be woken before the peer sends
/// something, and reading and writing must work as usual.
#[test]
fn an_idle_socket_is_not_woken_after_a_transfer() {
    use std::io::{Read, Write};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let file = pattern_file(FILE_BYTES);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        let (socket, mut peer) = socket_pair(Family::Tcp);
        let expected = pattern(FILE_BYTES);
        let receiver = std::thread::spawn(move || {
            let mut received = vec![0; FILE_BYTES];
            peer.read_exact(&mut received).unwrap();
            assert!(received == expected);
            std::thread::sleep(Duration::from_millis(300));
            peer.write_all(b"thanks").unwrap();
            let mut rest = Vec::new();
            peer.read_to_end(&mut rest).unwrap();
            rest
        });
        runtime().block_on(async {
            let mut socket = tokio_tcp(socket);
            let send_file = SendFile::new(&file).force_mechanisms(&[mechanism]);
            let report = send_file.to_tokio(&socket).await.unwrap();
            assert_all_sent_by(&report, mechanism, FILE_BYTES as u64, "before idling");

            let (mut polls, mut reply) = (0, [0; 6]);
            let reading = count_polls(&mut polls, socket.read_exact(&mut reply));
            let used = cpu_time_of(reading).await;
            assert_eq!(&reply, b"thanks");
            assert!(polls < 10, "{mechanism}: {polls} polls");
            assert!(used < Duration::from_millis(100), "{used:?} of CPU");
            socket.write_all(b"bye").await.unwrap();
        });
        assert_eq!(receiver.join().unwrap(), b"bye");
    }
}

/// The last bytes of a transfer must arrive at once. If the kernel were told that more bytes follow
/// (`MSG_MORE`), it would hold the last ones back for up to 200 ms. A transfer takes about 1 ms, so
/// the median of twenty transfers stays far below 200 ms even on a busy machine.
#[test]
fn the_last_bytes_are_not_delayed() {
    use std::io::Read;
    use std::time::Instant;

    let size = 100_001;
    let file = pattern_file(size);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for length in [Length::UntilEof, Length::Exact(size as u64)] {
            let (socket, mut peer) = socket_pair(Family::Tcp);
            rustix::net::sockopt::set_tcp_nodelay(&socket, true).unwrap();
            let mut times: Vec<Duration> = Vec::new();
            runtime().block_on(async {
                let socket = tokio_tcp(socket);
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

/// A file can also be sent if only the writing half of a split socket is available.
#[test]
fn a_file_can_be_sent_to_the_writing_half_of_a_socket() {
    let file = pattern_file(FILE_BYTES);
    let (socket, mut peer) = socket_pair(Family::Unix);
    let file = &file;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || receive(&mut peer, file, 0));
        runtime().block_on(async {
            let (_reader, writer) = tokio_unix(socket).into_split();
            let stream: &UnixStream = writer.as_ref();
            let report = SendFile::new(file).to_tokio(stream).await.unwrap();
            assert_all_sent_by(&report, Mechanism::Sendfile, FILE_BYTES as u64, "a half");
        });
        assert_eq!(receiver.join().unwrap(), FILE_BYTES as u64);
    });
}
