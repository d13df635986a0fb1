//! Sends bytes that are not requests. The program must keep running, and nothing may leak.
//!
//! Each run prints its seed. To reproduce the run, set `UNCOPIED_GARBAGE_SEED` to that seed.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::client::{TEST_TIMEOUT, connect, get};
use crate::process::{ProcessResources, anonymous_memory};
use crate::rng::{Rng, seed};
use crate::server::Server;

const ROUNDS: usize = 2000;
/// A valid request, which the test then corrupts.
const REQUEST: &[u8] = b"GET /file?a=b HTTP/1.1\r\nHost: garbage\r\nRange: bytes=0-4,7-9\r\n\
    If-None-Match: \"a\", W/\"b\"\r\nAccept-Encoding: gzip;q=0.5, br\r\n\r\n";

/// Returns bytes that are almost a valid request, or nothing like one.
fn garbage(rng: &mut Rng) -> Vec<u8> {
    let mut request = REQUEST.to_vec();
    match rng.below(9) {
        0 => {
            let len = rng.below(5000);
            rng.bytes(len)
        }
        1 => {
            request.truncate(rng.below(REQUEST.len()));
            request
        }
        // Change some bytes.
        2 => {
            for _ in 0..=rng.below(8) {
                let at = rng.below(request.len());
                request[at] = rng.next_u64() as u8;
            }
            request
        }
        // Insert NULs, line feeds, spaces and colons in the wrong places.
        3 => {
            for _ in 0..=rng.below(4) {
                let at = rng.below(request.len());
                request.insert(at, b"\0\n\r :%"[rng.below(6)]);
            }
            request
        }
        // A head without an end.
        4 => [
            &b"GET / HTTP/1.1\r\nHost: a\r\nX: "[..],
            &vec![b'a'; rng.below(100_000)],
        ]
        .concat(),
        // A head with too many lines.
        5 => {
            let lines = b"a: b\r\n".repeat(rng.below(3000));
            [&b"GET / HTTP/1.1\r\nHost: a\r\n"[..], &lines, b"\r\n"].concat()
        }
        // A random path.
        6 => {
            let len = rng.below(300);
            let path = rng.bytes(len);
            let escaped: String = path.iter().map(|byte| format!("%{byte:02x}")).collect();
            format!("GET /{escaped} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes()
        }
        // Random ranges.
        7 => {
            let number = |rng: &mut Rng| rng.next_u64() >> rng.below(64);
            let ranges: Vec<_> = (0..=rng.below(20))
                .map(|_| format!("{}-{}", number(rng), number(rng)))
                .collect();
            let ranges = ranges.join(",");
            format!("GET /file HTTP/1.1\r\nHost: a\r\nRange: bytes={ranges}\r\n\r\n").into_bytes()
        }
        // A body that is itself a request, and that is longer than the Content-Length of the POST.
        _ => {
            let len = rng.below(100);
            let head = format!("POST /file HTTP/1.1\r\nHost: a\r\nContent-Length: {len}\r\n\r\n");
            [head.as_bytes(), REQUEST].concat()
        }
    }
}

/// Sends garbage in pieces, and then either disconnects at once or reads the response.
fn send_garbage(address: SocketAddr, rng: &mut Rng) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let mut bytes = garbage(rng);
    if rng.chance(30) {
        bytes.extend(garbage(rng));
    }
    for piece in bytes.chunks(1 + rng.below(bytes.len() + 1)) {
        // Sending fails if the server has already closed the connection. It does so after a
        // malformed head, and after a request with a body.
        if stream.write_all(piece).is_err() {
            return;
        }
    }
    if rng.chance(50) {
        return;
    }
    if stream.shutdown(Shutdown::Write).is_err() {
        return;
    }
    let mut response = Vec::new();
    match stream.read_to_end(&mut response) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
        Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&bytes)),
    }
    let is_http = response.is_empty() || response.starts_with(b"HTTP/1.");
    assert!(
        is_http,
        "{:?} got {response:?}",
        String::from_utf8_lossy(&bytes)
    );
}

#[test]
fn garbage_ends_only_its_own_connection() {
    let seed = seed("UNCOPIED_GARBAGE_SEED");
    println!("UNCOPIED_GARBAGE_SEED={seed}");
    let site = tempfile::tempdir().unwrap();
    fs::write(site.path().join("file"), "0123456789").unwrap();
    let mut server = Server::start(site.path(), &["--list", "--access-log", "json"]);
    server.collect_stdout();
    // Ignore the number of threads, because threads that read from the disk stay alive for a while.
    let before = ProcessResources {
        threads: usize::MAX,
        ..ProcessResources::of(server.id(), site.path())
    };
    let mut rng = Rng::new(seed, 0);
    for _ in 0..100 {
        send_garbage(server.address(), &mut rng);
    }
    let memory_before = anonymous_memory(server.id());
    let mut witness = connect(server.address());
    for round in 0..ROUNDS {
        send_garbage(server.address(), &mut rng);
        if round % 10 == 0 {
            assert_eq!(
                get(&mut witness, "/file").body,
                b"0123456789",
                "seed {seed}"
            );
        }
    }
    drop(witness);
    let after =
        ProcessResources::wait_until_within(server.id(), site.path(), &before, TEST_TIMEOUT);
    assert!(
        after.is_within(&before),
        "seed {seed}: {before:?} → {after:?}"
    );
    let memory = anonymous_memory(server.id());
    assert!(
        memory < memory_before + (16 << 20),
        "seed {seed}: {memory_before} → {memory}"
    );
    let began = Instant::now();
    let exit = server.stop();
    assert!(began.elapsed() < Duration::from_secs(5), "seed {seed}");
    assert_eq!(
        exit.status.code(),
        Some(0),
        "seed {seed}: {:?}",
        exit.stderr
    );
    assert_eq!(exit.stderr.len(), 2, "seed {seed}: {:?}", exit.stderr);
    let is_control = |c: char| c != '\n' && c.is_control();
    assert!(!exit.stdout.contains(is_control), "seed {seed}");
}
