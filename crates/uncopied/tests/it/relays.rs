//! Moving bytes between two sockets, in both directions: sizes around each boundary, half-closed
//! streams, small segments, readers that stall, resets, prefixes, urgent data, and what is used
//! when no pipe can be had.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_linger, set_socket_timeout, set_tcp_nodelay};
use rustix::net::{SendFlags, Shutdown, shutdown};
use uncopied::policy::{Length, Plan};
use uncopied::relay::{self, RelayEnd, RelayError, RelayOptions, Relayed};
use uncopied::{Errno, ErrorKind, Mechanism, Progress, RelayTransfer, Side};

use crate::harness::{
    DRIVERS, Driver, Family, expect_bytes, expect_eof, in_child, pattern, soak_time, socket_pair,
    wait_until,
};
use crate::relay_chaos::{Random, exchange};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// The kinds of the sockets that are relayed.
const FAMILIES: [(Family, Family); 3] = [
    (Family::Tcp, Family::Tcp),
    (Family::Unix, Family::Unix),
    (Family::Tcp, Family::Unix),
];

/// A client and a server, and the two sockets of the relay between them.
struct Ends {
    families: (Family, Family),
    client: File,
    a: OwnedFd,
    b: OwnedFd,
    server: File,
}

impl Ends {
    fn new(families: (Family, Family)) -> Self {
        let (a, client) = socket_pair(families.0);
        let (b, server) = socket_pair(families.1);
        Self {
            families,
            client,
            a,
            b,
            server,
        }
    }

    fn tcp() -> Self {
        Self::new((Family::Tcp, Family::Tcp))
    }

    /// Relays on a thread of its own, and closes the sockets.
    fn relay(
        self,
        driver: Driver,
        options: RelayOptions,
    ) -> (File, File, thread::JoinHandle<Result<Relayed, RelayError>>) {
        let Self {
            families,
            client,
            a,
            b,
            server,
        } = self;
        let relay = thread::spawn(move || match driver {
            Driver::Blocking => relay::copy_bidirectional_with(&a, &b, &options),
            #[cfg(feature = "tokio")]
            Driver::Tokio => crate::harness::runtime().block_on(async {
                let mut relay = uncopied::tokio::Relay::new(&options);
                on_tokio::run(&mut relay, families, a, b).await?;
                Ok(relay.relayed())
            }),
        });
        let _ = families;
        (client, server, relay)
    }
}

#[cfg(feature = "tokio")]
mod on_tokio {
    use super::*;
    use crate::harness::set_nonblocking;
    use tokio::net::{TcpStream, UnixStream};
    use uncopied::tokio::{DuplexSocket, Relay};

    /// A socket of tokio of either kind.
    pub(super) fn tcp(socket: OwnedFd) -> TcpStream {
        set_nonblocking(&socket);
        TcpStream::from_std(socket.into()).unwrap()
    }

    fn unix(socket: OwnedFd) -> UnixStream {
        set_nonblocking(&socket);
        UnixStream::from_std(socket.into()).unwrap()
    }

    pub(super) async fn run(
        relay: &mut Relay,
        families: (Family, Family),
        a: OwnedFd,
        b: OwnedFd,
    ) -> Result<(), RelayError> {
        async fn between(
            relay: &mut Relay,
            a: &impl DuplexSocket,
            b: &impl DuplexSocket,
        ) -> Result<(), RelayError> {
            relay.run(a, b).await
        }
        match families {
            (Family::Tcp, Family::Tcp) => between(relay, &tcp(a), &tcp(b)).await,
            (Family::Unix, Family::Unix) => between(relay, &unix(a), &unix(b)).await,
            (Family::Tcp, Family::Unix) => between(relay, &tcp(a), &unix(b)).await,
            (Family::Unix, Family::Tcp) => between(relay, &unix(a), &tcp(b)).await,
        }
    }
}

fn send_and_shut_down(socket: &File, bytes: Vec<u8>) -> thread::JoinHandle<()> {
    let mut socket = socket.try_clone().unwrap();
    thread::spawn(move || {
        socket.write_all(&bytes).unwrap();
        shutdown(&socket, Shutdown::Write).unwrap();
    })
}

/// Makes the close of this socket reset the connection.
fn reset(socket: File) {
    set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
    drop(socket);
}

#[test]
fn every_byte_arrives_in_both_directions() {
    let forced: [&[Mechanism]; 3] = [&[], &[Mechanism::Splice], &[Mechanism::Copy]];
    let boundaries = [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 2 * MIB];
    let around = boundaries.map(|size| [size - 1, size, size + 1]);
    for size in [0, 1].into_iter().chain(around.into_iter().flatten()) {
        for families in FAMILIES {
            for (mechanisms, &driver) in forced
                .iter()
                .flat_map(|it| DRIVERS.iter().map(move |d| (it, d)))
            {
                let case = format!("{size} bytes by {mechanisms:?}, {families:?}, {driver:?}");
                let forth = pattern(size);
                let back = pattern(size + 77).split_off(77);
                let options = RelayOptions::new().force_mechanisms(mechanisms);
                let (mut client, mut server, relay) = Ends::new(families).relay(driver, options);
                let senders = [
                    send_and_shut_down(&client, forth.clone()),
                    send_and_shut_down(&server, back.clone()),
                ];
                let receiver = thread::spawn(move || {
                    expect_bytes(&mut server, &forth);
                    expect_eof(&mut server);
                });
                expect_bytes(&mut client, &back);
                expect_eof(&mut client);
                receiver.join().unwrap();
                for sender in senders {
                    sender.join().unwrap();
                }
                let relayed = relay.join().unwrap().expect(&case);
                for report in [relayed.a_to_b, relayed.b_to_a] {
                    assert_eq!(report.bytes(), size as u64, "{case}");
                    assert!(report.fallbacks().is_empty(), "{case}: {report}");
                    if **mechanisms == [Mechanism::Copy] {
                        assert_eq!(report.by(Mechanism::Copy), size as u64, "{case}");
                    }
                    if mechanisms.is_empty() && size < 16 * KIB {
                        assert_eq!(report.by(Mechanism::Splice), 0, "{case}: {report}");
                    }
                }
            }
        }
    }
}

/// A client that shuts its side down still receives what the server sends afterwards.
#[test]
fn the_end_of_one_stream_is_passed_on_and_the_other_goes_on() {
    for families in FAMILIES {
        for &driver in DRIVERS {
            let (mut client, mut server, relay) =
                Ends::new(families).relay(driver, RelayOptions::new());
            client.write_all(b"request").unwrap();
            shutdown(&client, Shutdown::Write).unwrap();
            expect_bytes(&mut server, b"request");
            expect_eof(&mut server);
            let response = pattern(MIB);
            let sender = send_and_shut_down(&server, response.clone());
            expect_bytes(&mut client, &response);
            expect_eof(&mut client);
            sender.join().unwrap();
            let relayed = relay.join().unwrap().unwrap();
            assert_eq!(relayed.a_to_b.bytes(), 7);
            assert_eq!(relayed.b_to_a.bytes(), MIB as u64);
        }
    }
}

/// A pipe is full once its slots are in use, which may be after a few bytes. A relay that takes
/// this for a socket without bytes waits forever (sozu, issue 1323).
#[test]
fn small_segments_that_fill_the_slots_of_a_pipe_do_not_hang() {
    const SEGMENT_BYTES: usize = 23;
    const SEGMENTS: usize = 20_000;
    for &driver in DRIVERS {
        for mechanisms in [&[][..], &[Mechanism::Splice]] {
            let ends = Ends::tcp();
            set_tcp_nodelay(&ends.client, true).unwrap();
            let options = RelayOptions::new().force_mechanisms(mechanisms);
            let (mut client, mut server, relay) = ends.relay(driver, options);
            let sent = pattern(SEGMENT_BYTES * SEGMENTS);
            let expected = sent.clone();
            let sender = thread::spawn(move || {
                for segment in sent.chunks(SEGMENT_BYTES) {
                    client.write_all(segment).unwrap();
                }
                shutdown(&client, Shutdown::Both).unwrap();
            });
            // Let segments pile up.
            thread::sleep(Duration::from_millis(100));
            expect_bytes(&mut server, &expected);
            expect_eof(&mut server);
            drop(server);
            sender.join().unwrap();
            let relayed = relay.join().unwrap().unwrap();
            assert_eq!(relayed.a_to_b.bytes(), expected.len() as u64);
        }
    }
}

/// A stream begins with `copy`, changes to `splice` for bulk data, and back for small messages.
#[test]
fn a_stream_changes_between_messages_and_bulk_data() {
    for &driver in DRIVERS {
        let (mut client, mut server, relay) = Ends::tcp().relay(driver, RelayOptions::new());
        let bulk = pattern(4 * MIB);
        let mut messages = 0;
        for _ in 0..3 {
            // More than the number of short reads that end bulk data.
            for _ in 0..20 {
                client.write_all(b"message").unwrap();
                expect_bytes(&mut server, b"message");
                messages += 7;
            }
            let mut sender = client.try_clone().unwrap();
            let sent = bulk.clone();
            let sender = thread::spawn(move || sender.write_all(&sent).unwrap());
            expect_bytes(&mut server, &bulk);
            sender.join().unwrap();
        }
        drop((client, server));
        let relayed = relay.join().unwrap().unwrap();
        let report = relayed.a_to_b;
        assert_eq!(report.bytes(), messages + 3 * bulk.len() as u64);
        assert!(
            report.by(Mechanism::Copy) >= 3 * 16 * KIB as u64,
            "{report}"
        );
        assert!(report.by(Mechanism::Splice) > 4 * MIB as u64, "{report}");
        assert!(report.fallbacks().is_empty(), "{report}");
    }
}

/// While the reader stalls, the sender is stopped by full buffers. Every byte arrives later.
#[test]
fn a_reader_that_stalls_stops_the_sender() {
    const BYTES: usize = 16 * MIB;
    for &driver in DRIVERS {
        for mechanism in Mechanism::SOCKET_TO_SOCKET {
            let ends = Ends::tcp();
            for socket in [&ends.a, &ends.b] {
                rustix::net::sockopt::set_socket_send_buffer_size(socket, 64 * KIB).unwrap();
                rustix::net::sockopt::set_socket_recv_buffer_size(socket, 64 * KIB).unwrap();
            }
            rustix::net::sockopt::set_socket_send_buffer_size(&ends.client, 64 * KIB).unwrap();
            rustix::net::sockopt::set_socket_recv_buffer_size(&ends.server, 64 * KIB).unwrap();
            let options = RelayOptions::new().force_mechanisms(&[mechanism]);
            let (client, mut server, relay) = ends.relay(driver, options);
            set_socket_timeout(&client, Timeout::Send, Some(Duration::from_millis(300))).unwrap();
            let sent = pattern(BYTES);
            let mut accepted = 0;
            let mut sender = &client;
            while let Ok(bytes @ 1..) = sender.write(&sent[accepted..]) {
                accepted += bytes;
            }
            // Four socket buffers, which the kernel doubles, and a pipe.
            let most = 4 * 2 * 64 * KIB + 4 * 256 * KIB;
            assert!(
                accepted < most,
                "{accepted} bytes by {mechanism}, {driver:?}"
            );
            set_socket_timeout(&client, Timeout::Send, None).unwrap();
            let rest = send_and_shut_down(&client, sent[accepted..].to_vec());
            expect_bytes(&mut server, &sent);
            expect_eof(&mut server);
            drop(server);
            rest.join().unwrap();
            drop(client);
            let relayed = relay.join().unwrap().unwrap();
            assert_eq!(relayed.a_to_b.bytes(), BYTES as u64);
        }
    }
}

#[test]
fn a_reset_names_the_end_and_keeps_the_counts() {
    for &driver in DRIVERS {
        for end in [RelayEnd::A, RelayEnd::B] {
            let (mut client, mut server, relay) = Ends::tcp().relay(driver, RelayOptions::new());
            client.write_all(b"to the server").unwrap();
            expect_bytes(&mut server, b"to the server");
            server.write_all(b"back").unwrap();
            expect_bytes(&mut client, b"back");
            let survivor = match end {
                RelayEnd::A => {
                    reset(client);
                    server
                }
                RelayEnd::B => {
                    reset(server);
                    client
                }
            };
            let error = relay.join().unwrap().expect_err("a reset");
            drop(survivor);
            assert_eq!(error.failed_end(), Some(end), "{error}");
            assert_eq!(error.error().kind(), ErrorKind::PeerClosed, "{error}");
            assert_eq!(error.error().side(), Some(Side::Source), "{error}");
            assert_eq!(error.relayed().a_to_b.bytes(), 13);
            assert_eq!(error.relayed().b_to_a.bytes(), 4);
            let text = error.to_string();
            assert!(
                text.contains("the peer of the source closed the connection"),
                "{text}"
            );
        }
    }
}

#[test]
fn bytes_that_were_read_before_go_first() {
    for &driver in DRIVERS {
        let long = pattern(MIB);
        let options = RelayOptions::new()
            .prefix_to_b(b"PROXY UNKNOWN\r\n".to_vec())
            .prefix_to_a(long.clone());
        let (mut client, mut server, relay) = Ends::tcp().relay(driver, options);
        client.write_all(b"request").unwrap();
        shutdown(&client, Shutdown::Write).unwrap();
        expect_bytes(&mut server, b"PROXY UNKNOWN\r\nrequest");
        expect_eof(&mut server);
        server.write_all(b"response").unwrap();
        drop(server);
        expect_bytes(&mut client, &long);
        expect_bytes(&mut client, b"response");
        expect_eof(&mut client);
        let relayed = relay.join().unwrap().unwrap();
        assert_eq!(relayed.a_to_b.by(Mechanism::Copy), 15 + 7);
        assert_eq!(relayed.b_to_a.by(Mechanism::Copy), MIB as u64 + 8);
    }
}

/// `splice` does not pass over urgent data, and returns as if the stream had ended, or as if no
/// bytes had arrived.
#[test]
fn urgent_data_does_not_stop_a_stream() {
    for &driver in DRIVERS {
        for mechanisms in [&[][..], &[Mechanism::Splice]] {
            let options = RelayOptions::new().force_mechanisms(mechanisms);
            let (mut client, mut server, relay) = Ends::tcp().relay(driver, options);
            for _ in 0..3 {
                client.write_all(b"before").unwrap();
                rustix::net::send(&client, b"!", SendFlags::OOB).unwrap();
                client.write_all(b"after").unwrap();
                expect_bytes(&mut server, b"beforeafter");
            }
            drop((client, server));
            let relayed = relay.join().unwrap().unwrap();
            assert_eq!(relayed.a_to_b.bytes(), 3 * 11);
        }
    }
}

/// An event loop that trusts a short read must be told of bytes that such a read has left.
#[test]
fn a_short_read_empties_tcp_sockets_unless_urgent_data_follows() {
    for family in [Family::Tcp, Family::Unix] {
        let is_tcp = family == Family::Tcp;
        let ends = Ends::new((family, family));
        for socket in [&ends.a, &ends.b] {
            rustix::io::ioctl_fionbio(socket, true).unwrap();
        }
        let mut client = &ends.client;
        let mut transfer = RelayTransfer::new(Length::UntilEof, Plan::copying());
        let mut step = |expected| {
            let moved = transfer.step(&ends.a, &ends.b).unwrap();
            assert_eq!(moved, Progress::Moved(expected));
            transfer.has_emptied_source(&ends.a)
        };
        let arrives = |bytes| {
            let arrived = || rustix::io::ioctl_fionread(&ends.a).unwrap();
            wait_until("bytes that arrive", || arrived() == bytes);
        };
        client.write_all(b"first").unwrap();
        arrives(5);
        assert!(!step(5), "the first short read is not looked into");
        client.write_all(b"second").unwrap();
        arrives(6);
        assert_eq!(step(6), is_tcp);
        if !is_tcp {
            continue;
        }
        client.write_all(b"before").unwrap();
        rustix::net::send(client, b"!", SendFlags::OOB).unwrap();
        client.write_all(b"after").unwrap();
        // The number of bytes up to the urgent one. Those after it have been sent as well.
        arrives(6);
        thread::sleep(Duration::from_millis(50));
        assert!(!step(6), "more bytes follow the urgent one");
        assert!(step(5));
    }
}

#[test]
fn only_stream_sockets_are_relayed() {
    let datagrams = OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    let ends = Ends::tcp();
    let error = relay::copy_bidirectional(&ends.a, &datagrams).expect_err("datagrams");
    assert_eq!(error.error().kind(), ErrorKind::NotAStreamSocket);
    assert_eq!(error.failed_end(), Some(RelayEnd::B));
}

#[test]
fn a_blocking_relay_keeps_to_the_timeouts_of_its_sockets() {
    let ends = Ends::tcp();
    set_socket_timeout(&ends.a, Timeout::Recv, Some(Duration::from_millis(50))).unwrap();
    let (mut client, server, relay) = ends.relay(Driver::Blocking, RelayOptions::new());
    client.write_all(b"hello").unwrap();
    let error = relay.join().unwrap().expect_err("a timeout");
    assert_eq!(error.error().kind(), ErrorKind::TimedOut, "{error}");
    assert_eq!(error.failed_end(), Some(RelayEnd::A));
    assert_eq!(error.relayed().a_to_b.bytes(), 5);
    drop(server);
}

/// Many connections at once, with everything that is hard, while the number of pipes changes.
#[test]
fn chaos_changes_no_byte() {
    const CONNECTIONS: u64 = 6;
    let test = "relays::chaos_changes_no_byte";
    let body = || {
        let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        // The first event loop of a process may open descriptors that are never closed.
        #[cfg(feature = "tokio")]
        drop(crate::harness::runtime());
        let before = descriptors();
        let until = Instant::now() + soak_time(Duration::from_secs(5));
        let (exchanged, reset) = (AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            for number in 0..CONNECTIONS {
                let (exchanged, reset) = (&exchanged, &reset);
                scope.spawn(move || {
                    let mut random = Random(number);
                    while Instant::now() < until {
                        relay::set_pipe_limit(random.below(4) as usize);
                        let driver = DRIVERS[random.below(DRIVERS.len() as u64) as usize];
                        let (client, server, relay) =
                            Ends::tcp().relay(driver, RelayOptions::new());
                        let sockets = [client, server].map(|file| OwnedFd::from(file).into());
                        let [client, server]: [TcpStream; 2] = sockets;
                        let is_reset =
                            exchange(&client, &server, random.clone(), &AtomicBool::new(false));
                        drop((client, server));
                        let relayed = relay.join().unwrap();
                        assert!(is_reset || relayed.is_ok(), "{relayed:?}");
                        reset.fetch_add(is_reset.into(), Relaxed);
                        exchanged.fetch_add(1, Relaxed);
                    }
                });
            }
        });
        let counts = (exchanged.into_inner(), reset.into_inner());
        assert!(counts.0 > CONNECTIONS && counts.1 > 0, "{counts:?}");
        assert_eq!(relay::pipes_in_use(), 0);
        // A thread may end, and close its idle pipes, shortly after it has been waited for.
        wait_until("no descriptor is left", || descriptors() == before);
    };
    in_child(test, |_| {}, body);
}

/// A stream that waits has no pipe. One whose sink is full has one.
#[test]
fn only_a_stream_with_a_full_sink_holds_a_pipe() {
    let test = "relays::only_a_stream_with_a_full_sink_holds_a_pipe";
    in_child(
        test,
        |_| {},
        || {
            for &driver in DRIVERS {
                let options = RelayOptions::new().force_mechanisms(&[Mechanism::Splice]);
                let (mut client, mut server, relay) = Ends::tcp().relay(driver, options);
                let sent = pattern(16 * MIB);
                let expected = sent.clone();
                let mut sender = client.try_clone().unwrap();
                let sender = thread::spawn(move || sender.write_all(&sent).unwrap());
                wait_until("a pipe in use", || relay::pipes_in_use() == 1);
                expect_bytes(&mut server, &expected);
                sender.join().unwrap();
                wait_until("no pipe in use", || relay::pipes_in_use() == 0);
                client.write_all(b"more").unwrap();
                expect_bytes(&mut server, b"more");
                drop((client, server));
                relay.join().unwrap().unwrap();
                assert_eq!(relay::pipes_in_use(), 0);
            }
        },
    );
}

/// If no pipe can be had, bytes are copied, until there is one.
#[test]
fn without_a_pipe_bytes_are_copied() {
    in_child(
        "relays::without_a_pipe_bytes_are_copied",
        |_| {},
        || {
            for &driver in DRIVERS {
                relay::set_pipe_limit(0);
                let (client, mut server, relay) = Ends::tcp().relay(driver, RelayOptions::new());
                let bulk = pattern(2 * MIB);
                for limit in [0, 1] {
                    relay::set_pipe_limit(limit);
                    let mut sender = client.try_clone().unwrap();
                    let sent = bulk.clone();
                    let sender = thread::spawn(move || sender.write_all(&sent).unwrap());
                    expect_bytes(&mut server, &bulk);
                    sender.join().unwrap();
                }
                drop((client, server));
                let report = relay.join().unwrap().unwrap().a_to_b;
                assert!(report.by(Mechanism::Copy) >= 2 * MIB as u64, "{report}");
                assert!(report.by(Mechanism::Splice) >= MIB as u64, "{report}");
                let [fallback] = report.fallbacks() else {
                    panic!("{report}");
                };
                assert_eq!(fallback.errno, Errno::from_raw_os_error(libc::EUSERS));
            }
        },
    );
}

#[test]
fn while_zero_copy_is_off_every_byte_is_copied() {
    let test = "relays::while_zero_copy_is_off_every_byte_is_copied";
    in_child(
        test,
        |_| {},
        || {
            for &driver in DRIVERS {
                for off in [
                    uncopied::set_zero_copy_send,
                    uncopied::set_zero_copy_receive,
                ] {
                    off(false);
                    let options = RelayOptions::new().force_mechanisms(&[Mechanism::Splice]);
                    let (client, mut server, relay) = Ends::tcp().relay(driver, options);
                    let bytes = pattern(MIB);
                    let sender = send_and_shut_down(&client, bytes.clone());
                    expect_bytes(&mut server, &bytes);
                    sender.join().unwrap();
                    drop((client, server));
                    let report = relay.join().unwrap().unwrap().a_to_b;
                    assert_eq!(report.by(Mechanism::Copy), MIB as u64);
                    assert!(report.switched_off(), "{report}");
                    off(true);
                }
            }
        },
    );
}

/// A `Relay` owns the bytes that it has taken, so its futures may be dropped at any time.
#[cfg(feature = "tokio")]
#[test]
fn dropped_futures_lose_no_byte() {
    use uncopied::tokio::Relay;
    for mechanism in Mechanism::SOCKET_TO_SOCKET {
        let Ends {
            client,
            a,
            b,
            mut server,
            ..
        } = Ends::tcp();
        let bytes = pattern(8 * MIB);
        let sender = send_and_shut_down(&client, bytes.clone());
        let receiver = thread::spawn(move || {
            let mut received = Vec::new();
            let mut buffer = vec![0; 64 * KIB];
            while let Ok(read @ 1..) = server.read(&mut buffer) {
                received.extend_from_slice(&buffer[..read]);
                thread::sleep(Duration::from_micros(100));
            }
            received
        });
        let (drops, relayed) = crate::harness::runtime().block_on(async {
            let (a, b) = (on_tokio::tcp(a), on_tokio::tcp(b));
            let mut relay = Relay::new(&RelayOptions::new().force_mechanisms(&[mechanism]));
            let mut drops = 0;
            loop {
                let run = relay.run(&a, &b);
                match tokio::time::timeout(Duration::from_millis(1), run).await {
                    Ok(result) => {
                        result.unwrap();
                        return (drops, relay.relayed());
                    }
                    Err(_) => drops += 1,
                }
            }
        });
        sender.join().unwrap();
        assert!(receiver.join().unwrap() == bytes, "{mechanism}");
        assert!(drops > 3, "{drops} futures were dropped");
        // Bytes that arrive just after a `splice` has found none are copied.
        let by_mechanism = relayed.a_to_b.by(mechanism);
        assert!(by_mechanism > relayed.a_to_b.bytes() / 2, "{relayed:?}");
        drop(client);
    }
}
