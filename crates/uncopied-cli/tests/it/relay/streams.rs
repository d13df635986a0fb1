//! Bytes, ends and resets of streams reach the other side.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::SendFlags;
use rustix::net::sockopt::set_socket_linger;

use super::peers::{Target, echo};
use super::{assert_reset, relay};
use crate::client::{connect, read_to_end};
use crate::data::test_bytes;
use crate::server::{Server, program};

/// Sends `bytes` and the end of the stream, while it reads up to the end of the other one.
fn exchange(stream: &TcpStream, bytes: &[u8]) -> Vec<u8> {
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = stream;
            stream.write_all(bytes).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        read_to_end(&mut &*stream)
    })
}

#[test]
fn every_byte_arrives_with_every_mechanism() {
    let target = echo();
    for mechanism in ["auto", "splice", "copy"] {
        let relay = relay(&[target], &["--mechanism", mechanism]);
        let mut total = 0;
        for len in [0, 1, 4096, 16_383, 16_384, 16_385, 5 << 20] {
            let bytes = test_bytes(len);
            let returned = exchange(&connect(relay.address()), &bytes);
            assert!(returned == bytes, "{mechanism}, {len} bytes");
            total += len;
        }
        let exit = relay.stop();
        assert!(exit.status.success());
        let totals = exit.stderr.last().unwrap();
        let sums = format!("{total} bytes to targets: ");
        assert!(totals.contains(&sums), "{totals}");
        let by_splice = |line: &str| -> Vec<u64> {
            let counts = line.split("splice ").skip(1);
            let counts = counts.map(|rest| rest.split(',').next().unwrap());
            counts.map(|count| count.parse().unwrap()).collect()
        };
        for spliced in by_splice(totals) {
            match mechanism {
                "copy" => assert_eq!(spliced, 0, "{totals}"),
                // Some bytes may be copied: other programs of the same user may use up the memory
                // that its pipes may take.
                _ => assert!(spliced > total as u64 / 2, "{mechanism}: {totals}"),
            }
        }
    }
}

#[test]
fn messages_are_relayed_in_turn_on_one_connection() {
    let relay = relay(&[echo()], &[]);
    let mut stream = connect(relay.address());
    for round in 0..1000_usize {
        let message = test_bytes(1 + round * 37 % 3000);
        stream.write_all(&message).unwrap();
        let mut returned = vec![0; message.len()];
        stream.read_exact(&mut returned).unwrap();
        assert_eq!(returned, message, "{round}");
    }
}

#[test]
fn a_client_that_has_ended_its_stream_still_reads() {
    let target = Target::start();
    let relay = relay(&[target.address], &[]);
    let response = test_bytes(3 << 20);
    let mut client = connect(relay.address());
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut server = target.accept();
    // Only once the end of the stream has arrived.
    assert_eq!(read_to_end(&mut server), b"request");
    thread::scope(|scope| {
        scope.spawn(|| {
            server.write_all(&response).unwrap();
            server.shutdown(Shutdown::Write).unwrap();
        });
        assert!(read_to_end(&mut client) == response);
    });
}

#[test]
fn a_target_that_has_ended_its_stream_still_reads() {
    let target = Target::start();
    let relay = relay(&[target.address], &[]);
    let mut client = connect(relay.address());
    let mut server = target.accept();
    server.write_all(b"greeting").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut client), b"greeting");
    client.write_all(b"late").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut server), b"late");
}

/// Closes the socket so that its peer finds the connection reset.
fn reset(stream: TcpStream) {
    set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_reset_reaches_the_other_side_after_the_bytes_before_it() {
    let target = Target::start();
    let relay = relay(&[target.address], &["--access-log", "text"]);
    let client = connect(relay.address());
    let mut server = target.accept();
    server.write_all(b"cut").unwrap();
    let mut arrived = [0; 3];
    (&client).read_exact(&mut arrived).unwrap();
    reset(server);
    assert_reset(&client, b"");

    let mut client = connect(relay.address());
    let server = target.accept();
    client.write_all(b"cut").unwrap();
    (&server).read_exact(&mut arrived).unwrap();
    reset(client);
    assert_reset(&server, b"");
}

#[test]
fn a_response_arrives_although_the_target_does_not_read_the_request() {
    let target = Target::start();
    let relay = relay(&[target.address], &[]);
    let response = test_bytes(200_000);
    let client = connect(relay.address());
    let mut server = target.accept();
    thread::scope(|scope| {
        scope.spawn(|| {
            // Fails once the target has closed.
            let _ = (&client).write_all(&test_bytes(40 << 20));
        });
        let mut first = [0; 1];
        server.read_exact(&mut first).unwrap();
        server.write_all(&response).unwrap();
        // The relay's host has received everything. Then the target closes with unread bytes,
        // which resets the connection.
        while uncopied::queued_bytes(&server).unwrap() > 0 {
            thread::sleep(Duration::from_millis(1));
        }
        drop(server);
        let mut received = vec![0; response.len()];
        (&client).read_exact(&mut received).unwrap();
        assert!(received == response);
        let _ = client.shutdown(Shutdown::Both);
    });
}

/// A read ends before urgent data, although bytes follow it. A relay that took such a read for the
/// last one would wait forever.
#[test]
fn bytes_after_urgent_data_are_relayed() {
    let relay = relay(&[echo()], &["--threads", "1"]);
    let mut client = connect(relay.address());
    client.set_nodelay(true).unwrap();
    for round in 0..200_u8 {
        client.write_all(&[round, 1]).unwrap();
        rustix::net::send(&client, &[0xff], SendFlags::OOB).unwrap();
        client.write_all(&[round, 2]).unwrap();
        let mut got = [0; 4];
        client.read_exact(&mut got).unwrap();
        assert_eq!(got, [round, 1, round, 2]);
    }
    drop(client);
    assert!(relay.stop().status.success());
}

#[test]
fn unix_sockets_are_relayed_on_both_sides() {
    let directory = tempfile::tempdir().unwrap();
    let (listen, target) = (directory.path().join("in"), directory.path().join("out"));
    let listener = UnixListener::bind(&target).unwrap();
    let mut command = program();
    command.arg("relay");
    command.arg(format!("unix:{}", listen.display()));
    command.arg(format!("unix:{}", target.display()));
    let relay = Server::spawn(command, 1);
    let bytes = test_bytes(1 << 20);
    let mut client = UnixStream::connect(&listen).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut server, _) = listener.accept().unwrap();
            let received = read_to_end(&mut server);
            server.write_all(&received).unwrap();
        });
        client.write_all(&bytes).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert!(read_to_end(&mut client) == bytes);
    });
    assert!(relay.stop().status.success());
    assert!(!listen.exists(), "the relay removes its socket");
}

/// The target may have sent its bytes and closed before the relay looks at the connection.
#[test]
fn a_target_that_greets_and_closes_at_once_is_heard() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("out");
    let listener = UnixListener::bind(&target).unwrap();
    let mut command = program();
    command.args(["relay", "127.0.0.1:0", "--threads", "1"]);
    command.args(["--health-interval", "0"]);
    command.arg(format!("unix:{}", target.display()));
    let relay = Server::spawn(command, 1);
    thread::spawn(move || {
        for socket in listener.incoming() {
            socket.unwrap().write_all(b"too many connections").unwrap();
        }
    });
    // All at once, so that the relay has much to do between two looks.
    let clients: Vec<_> = (0..200).map(|_| connect(relay.address())).collect();
    for mut client in clients {
        assert_eq!(read_to_end(&mut client), b"too many connections");
    }
    assert!(relay.stop().status.success());
}

#[test]
fn a_rate_limit_holds_for_each_direction() {
    const RATE: usize = 1 << 20;
    let relay = relay(&[echo()], &["--limit-rate", "1M"]);
    let bytes = test_bytes(RATE / 2);
    let began = Instant::now();
    let returned = exchange(&connect(relay.address()), &bytes);
    assert!(returned == bytes);
    // Both directions at the same time. The last burst is not waited for.
    let least = Duration::from_millis(400);
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
}
