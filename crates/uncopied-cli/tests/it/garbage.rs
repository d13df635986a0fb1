//! Bytes that are no requests: the program lives on, and nothing is left behind.
//!
//! `UNCOPIED_GARBAGE_SEED` repeats it.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::client::{PATIENCE, connect, get};
use crate::dice::{Dice, seed};
use crate::process::{Held, anonymous_memory};
use crate::server::Server;

const ROUNDS: usize = 2000;
/// A valid request that is then spoilt.
const REQUEST: &[u8] = b"GET /file?a=b HTTP/1.1\r\nHost: garbage\r\nRange: bytes=0-4,7-9\r\n\
    If-None-Match: \"a\", W/\"b\"\r\nAccept-Encoding: gzip;q=0.5, br\r\n\r\n";

fn noise(dice: &mut Dice, len: usize) -> Vec<u8> {
    (0..len).map(|_| dice.throw() as u8).collect()
}

/// Something that is nearly a request, or nothing like one.
fn garbage(dice: &mut Dice) -> Vec<u8> {
    let mut request = REQUEST.to_vec();
    match dice.below(9) {
        0 => {
            let len = dice.below(5000);
            noise(dice, len)
        }
        1 => {
            request.truncate(dice.below(REQUEST.len()));
            request
        }
        // Some bytes are others.
        2 => {
            for _ in 0..=dice.below(8) {
                let at = dice.below(request.len());
                request[at] = dice.throw() as u8;
            }
            request
        }
        // NULs, line feeds, spaces and colons where none belong.
        3 => {
            for _ in 0..=dice.below(4) {
                let at = dice.below(request.len());
                request.insert(at, b"\0\n\r :%"[dice.below(6)]);
            }
            request
        }
        // A head without an end, and one with too many lines.
        4 => [
            &b"GET / HTTP/1.1\r\nHost: a\r\nX: "[..],
            &vec![b'a'; dice.below(100_000)],
        ]
        .concat(),
        5 => {
            let lines = b"a: b\r\n".repeat(dice.below(3000));
            [&b"GET / HTTP/1.1\r\nHost: a\r\n"[..], &lines, b"\r\n"].concat()
        }
        // Paths and ranges of any bytes.
        6 => {
            let len = dice.below(300);
            let path = noise(dice, len);
            let escaped: String = path.iter().map(|byte| format!("%{byte:02x}")).collect();
            format!("GET /{escaped} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes()
        }
        7 => {
            let number = |dice: &mut Dice| dice.throw() >> dice.below(64);
            let ranges: Vec<_> = (0..=dice.below(20))
                .map(|_| format!("{}-{}", number(dice), number(dice)))
                .collect();
            let ranges = ranges.join(",");
            format!("GET /file HTTP/1.1\r\nHost: a\r\nRange: bytes={ranges}\r\n\r\n").into_bytes()
        }
        // Requests with bodies that do not come, or are requests.
        _ => {
            let len = dice.below(100);
            let head = format!("POST /file HTTP/1.1\r\nHost: a\r\nContent-Length: {len}\r\n\r\n");
            [head.as_bytes(), REQUEST].concat()
        }
    }
}

/// Sends garbage in pieces, reads what comes, and goes.
fn throw(address: SocketAddr, dice: &mut Dice) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = garbage(dice);
    if dice.chance(30) {
        bytes.extend(garbage(dice));
    }
    for piece in bytes.chunks(1 + dice.below(bytes.len() + 1)) {
        // The server may have had enough.
        if stream.write_all(piece).is_err() {
            return;
        }
    }
    if dice.chance(50) {
        return;
    }
    if stream.shutdown(Shutdown::Write).is_err() {
        return;
    }
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
        Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&bytes)),
    }
    let is_http = answer.is_empty() || answer.starts_with(b"HTTP/1.");
    assert!(
        is_http,
        "{:?} got {answer:?}",
        String::from_utf8_lossy(&bytes)
    );
}

#[test]
fn garbage_ends_nothing_but_its_own_connection() {
    let seed = seed("UNCOPIED_GARBAGE_SEED");
    println!("UNCOPIED_GARBAGE_SEED={seed}");
    let site = tempfile::tempdir().unwrap();
    fs::write(site.path().join("file"), "0123456789").unwrap();
    let mut server = Server::start(site.path(), &["--list", "--access-log", "json"]);
    server.collect_output();
    // Threads that waited for the disk live on for a while.
    let before = Held {
        threads: usize::MAX,
        ..Held::by(server.id(), site.path())
    };
    let mut dice = Dice::new(seed, 0);
    for _ in 0..100 {
        throw(server.address(), &mut dice);
    }
    let memory_before = anonymous_memory(server.id());
    let mut witness = connect(server.address());
    for round in 0..ROUNDS {
        throw(server.address(), &mut dice);
        if round % 10 == 0 {
            assert_eq!(
                get(&mut witness, "/file").body,
                b"0123456789",
                "seed {seed}"
            );
        }
    }
    drop(witness);
    let after = Held::settle(server.id(), site.path(), &before, PATIENCE);
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
    let end = server.stop();
    assert!(began.elapsed() < Duration::from_secs(5), "seed {seed}");
    assert_eq!(end.status.code(), Some(0), "seed {seed}: {:?}", end.said);
    assert_eq!(end.said.len(), 2, "seed {seed}: {:?}", end.said);
    let control = |c: char| c != '\n' && c.is_control();
    assert!(!end.output.contains(control), "seed {seed}");
}
