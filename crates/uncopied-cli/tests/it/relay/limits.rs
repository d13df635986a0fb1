//! Time limits, the limits on connections and descriptors, and leaks.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::peers::{Target, echo};
use super::{assert_reset, metrics, relay};
use crate::client::{TEST_TIMEOUT, connect, connect_with_small_window, read_to_end};
use crate::data::test_bytes;
use crate::process::{ProcessResources, raise_descriptor_limit};
use crate::rng::{Rng, seed};
use crate::server::Server;
use crate::skip::skip;

/// Returns the `end` of the only line of the access log, in JSON.
fn only_end(relay: Server) -> String {
    let exit = relay.stop();
    let line: serde_json::Value = serde_json::from_str(exit.stdout.trim_end()).unwrap();
    line["end"].as_str().unwrap().to_owned()
}

#[test]
fn a_connection_on_which_nothing_moves_is_cut() {
    let target = Target::start();
    let flags = ["--idle-timeout", "300ms", "--access-log", "json"];
    let mut relay = relay(&[target.address], &flags);
    relay.collect_stdout();
    let mut client = connect(relay.address());
    let mut server = target.accept();
    // It lasts for longer than the limit as long as bytes move.
    for _ in 0..10 {
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
        thread::sleep(Duration::from_millis(50));
    }
    assert_reset(&client, b"");
    assert_reset(&server, b"");
    assert_eq!(only_end(relay), "idle_timeout");
}

#[test]
fn a_half_closed_connection_has_a_limit_of_its_own() {
    let target = Target::start();
    let flags = ["--half-close-timeout", "300ms", "--access-log", "json"];
    let mut relay = relay(&[target.address], &flags);
    relay.collect_stdout();
    let client = connect(relay.address());
    let mut server = target.accept();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut server), b"");
    assert_reset(&client, b"");
    assert_eq!(only_end(relay), "half_close_timeout");
}

#[test]
fn a_client_that_reads_slowly_is_not_cut() {
    let target = Target::start();
    let relay = relay(&[target.address], &["--idle-timeout", "1500ms"]);
    let mut client = connect_with_small_window(relay.address());
    let mut server = target.accept();
    let bytes = test_bytes(12 << 20);
    thread::scope(|scope| {
        scope.spawn(|| {
            server.write_all(&bytes).unwrap();
            server.shutdown(Shutdown::Write).unwrap();
        });
        // Until all buffers are full, and for longer than the limit.
        let began = Instant::now();
        let mut received = Vec::new();
        let mut buffer = vec![0; 16 << 10];
        while began.elapsed() < Duration::from_secs(4) {
            client.read_exact(&mut buffer).unwrap();
            received.extend_from_slice(&buffer);
            thread::sleep(Duration::from_millis(20));
        }
        received.extend(read_to_end(&mut client));
        assert!(received == bytes);
    });
}

#[test]
fn connections_beyond_the_limit_are_refused_until_one_ends() {
    let flags = [
        "--max-connections",
        "2",
        "--access-log",
        "json",
        "--metrics",
        "127.0.0.1:0",
    ];
    let mut relay = relay(&[echo()], &flags);
    relay.collect_stdout();
    let open = || {
        let mut stream = connect(relay.address());
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        stream
    };
    let (first, second) = (open(), open());
    assert_reset(&connect(relay.address()), b"");
    assert_eq!(metrics(&relay).value("connections_open"), 2);
    assert_eq!(metrics(&relay).value("connections_limit"), 2);
    drop(first);
    let began = Instant::now();
    while metrics(&relay).value("connections_open") > 1 {
        assert!(began.elapsed() < TEST_TIMEOUT);
    }
    drop((open(), second));
    let metrics = metrics(&relay);
    assert_eq!(metrics.value("connections_ended_total{end=\"refused\"}"), 1);
    relay.wait_for_line("all 2 connections are in use");
    let exit = relay.stop();
    let refused = exit.stdout.lines().next().unwrap();
    assert!(refused.contains("\"end\":\"refused\""), "{refused}");
}

#[test]
fn without_descriptors_clients_wait_until_there_are_some() {
    let mut relay = relay(&[echo()], &["--threads", "1"]);
    let mut first = connect(relay.address());
    first.write_all(b"x").unwrap();
    first.read_exact(&mut [0]).unwrap();
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let pid = Pid::from_raw(relay.id().cast_signed());
    let used = ProcessResources::of(relay.id(), Path::new("/")).descriptors as u64;
    for (free, message) in [
        (0, "cannot accept connections for now: too many open files"),
        (1, "cannot connect to targets for now: too many open files"),
    ] {
        let limit = |current| Rlimit { current, maximum };
        let lowered = limit_that_leaves(free, relay.id());
        prlimit(pid, Resource::Nofile, limit(Some(lowered))).unwrap();
        let mut second = connect(relay.address());
        second.write_all(b"y").unwrap();
        relay.wait_for_line(message);
        // Open connections are not affected.
        first.write_all(b"x").unwrap();
        first.read_exact(&mut [0]).unwrap();
        prlimit(pid, Resource::Nofile, limit(maximum)).unwrap();
        second.read_exact(&mut [0]).unwrap();
        drop(second);
        let again = ProcessResources {
            descriptors: used as usize,
            ..ProcessResources::of(relay.id(), Path::new("/"))
        };
        let within =
            ProcessResources::wait_until_within(relay.id(), Path::new("/"), &again, TEST_TIMEOUT);
        assert_eq!(within.descriptors, used as usize);
    }
}

/// Returns the descriptor limit with which a process can open `free` more descriptors. The limit is
/// on the number of a descriptor, and the kernel gives out the lowest number that is free.
fn limit_that_leaves(free: usize, process: u32) -> u64 {
    let entries = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let used: Vec<u64> = entries
        .map(|entry| {
            entry
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    (0..)
        .filter(|number| !used.contains(number))
        .nth(free)
        .unwrap()
}

#[test]
fn two_thousand_busy_connections_stay_within_the_descriptor_limit() {
    const CONNECTIONS: usize = 2000;
    const BYTES: usize = 256 << 10;
    let relay = relay(&[echo()], &["--threads", "1", "--metrics", "127.0.0.1:0"]);
    let limit = metrics(&relay).value("connections_limit");
    if limit < CONNECTIONS as u64 || raise_descriptor_limit() < 3 * CONNECTIONS {
        skip(
            "two_thousand_busy_connections_stay_within_the_descriptor_limit",
            "it needs 6,000 descriptors",
        );
        return;
    }
    // Enough that every direction is spliced and, because nobody reads yet, has to wait.
    let bytes = test_bytes(BYTES);
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| connect(relay.address())).collect();
    for client in &mut clients {
        client.set_nonblocking(true).unwrap();
    }
    let mut sent = vec![0; CONNECTIONS];
    let mut received = vec![0; CONNECTIONS];
    let mut buffer = vec![0; BYTES];
    let began = Instant::now();
    while received.iter().any(|&received| received < BYTES) {
        assert!(began.elapsed() < 3 * TEST_TIMEOUT, "{received:?}");
        for (index, client) in clients.iter_mut().enumerate() {
            sent[index] += client.write(&bytes[sent[index]..]).unwrap_or(0);
            if let Ok(count) = client.read(&mut buffer) {
                let at = received[index];
                assert!(buffer[..count] == bytes[at..at + count]);
                received[index] += count;
            }
        }
    }
    let metrics = metrics(&relay);
    assert_eq!(metrics.value("connections_open"), CONNECTIONS as u64);
    assert_eq!(metrics.value("connect_errors_total{error=\"local\"}"), 0);
}

#[test]
fn connections_that_end_in_any_way_leave_nothing_behind() {
    const CLIENTS: u64 = 40;
    const ROUNDS: usize = 10;
    let relay = relay(&[echo()], &["--mechanism", "splice"]);
    let used = || ProcessResources::of(relay.id(), Path::new("/"));
    let seed = seed("UNCOPIED_RELAY_SEED");
    println!("UNCOPIED_RELAY_SEED={seed}");
    // A round first, so that every worker has its idle pipes.
    let round = |first: u64| {
        thread::scope(|scope| {
            for client in first..first + CLIENTS {
                let address = relay.address();
                scope.spawn(move || {
                    let mut rng = Rng::new(seed, client);
                    for _ in 0..ROUNDS {
                        vanish(connect(address), &mut rng);
                    }
                });
            }
        });
    };
    round(0);
    thread::sleep(Duration::from_millis(500));
    let before = ProcessResources {
        // Each of the workers may keep a few idle pipes.
        pipes: used().pipes.max(16 * 2),
        descriptors: used().descriptors.max(16 * 2 + 40),
        ..used()
    };
    round(CLIENTS);
    let after =
        ProcessResources::wait_until_within(relay.id(), Path::new("/"), &before, TEST_TIMEOUT);
    assert!(after.is_within(&before), "{after:?}, but before {before:?}");
    let exit = relay.stop();
    assert!(exit.status.success());
}

/// Sends some bytes and closes the connection, without reading, or by a reset, or properly.
fn vanish(mut stream: TcpStream, rng: &mut Rng) {
    // Few enough that the sockets hold them if nobody reads.
    let bytes = test_bytes(rng.below(100_000));
    let ending = rng.below(3);
    let mut reader = stream.try_clone().unwrap();
    let reading = thread::spawn(move || {
        let mut sink = Vec::new();
        if ending == 0 {
            let _ = reader.read_to_end(&mut sink);
        }
        sink
    });
    // Fails if the connection is reset meanwhile.
    let _ = stream.write_all(&bytes);
    match ending {
        0 => {
            stream.shutdown(Shutdown::Write).unwrap();
            assert!(reading.join().unwrap() == bytes);
        }
        1 => {
            reading.join().unwrap();
            set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        }
        _ => drop(reading.join().unwrap()),
    }
}
