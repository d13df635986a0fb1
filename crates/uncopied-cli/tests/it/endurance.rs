//! Tests that take minutes: many connections, slow readers at the default timeouts, a signal under
//! load, and 200 killed downloads. `just endurance` runs them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::client::{
    connect, connect_with_receive_buffer, get, read_head, read_response, send_get,
};
use crate::data::test_bytes;
use crate::process::raise_descriptor_limit;
use crate::server::Server;

/// How a client reads: how many bytes at a time, and how long it pauses after that.
struct Reader {
    name: &'static str,
    receive_buffer: Option<usize>,
    bytes: usize,
    pause: Duration,
}

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

const READERS: [Reader; 8] = [
    Reader {
        name: "20 KB/s with a buffer of 16 KiB",
        receive_buffer: Some(16 << 10),
        bytes: 2000,
        pause: MILLISECOND.saturating_mul(100),
    },
    Reader {
        name: "5 KB/s with a buffer of 16 KiB",
        receive_buffer: Some(16 << 10),
        bytes: 500,
        pause: MILLISECOND.saturating_mul(100),
    },
    Reader {
        name: "5 KB/s with a buffer of 64 KiB",
        receive_buffer: Some(64 << 10),
        bytes: 5000,
        pause: SECOND,
    },
    Reader {
        name: "50 KB/s with the default buffer",
        receive_buffer: None,
        bytes: 5000,
        pause: MILLISECOND.saturating_mul(100),
    },
    Reader {
        name: "a byte at a time",
        receive_buffer: Some(4 << 10),
        bytes: 1,
        pause: MILLISECOND,
    },
    Reader {
        name: "1 MB every 20 s",
        receive_buffer: None,
        bytes: 1_000_000,
        pause: SECOND.saturating_mul(20),
    },
    Reader {
        name: "200 KB every 50 s",
        receive_buffer: Some(64 << 10),
        bytes: 200_000,
        pause: SECOND.saturating_mul(50),
    },
    Reader {
        name: "64 KB/s with a buffer of 4 MiB",
        receive_buffer: Some(4 << 20),
        bytes: 64_000,
        pause: SECOND,
    },
];

impl Reader {
    /// Reads a file in its way for `time`, and the rest at full speed.
    fn read(&self, address: SocketAddr, expected: &[u8], time: Duration) {
        let mut stream = match self.receive_buffer {
            Some(bytes) => connect_with_receive_buffer(address, bytes),
            None => connect(address),
        };
        send_get(&mut stream, "/file");
        let (_, length) = read_head(&mut stream).unwrap();
        assert_eq!(length, expected.len());
        let end = Instant::now() + time;
        let mut received = Vec::with_capacity(length);
        while Instant::now() < end && received.len() < length {
            let wanted = self.bytes.min(length - received.len());
            let start = received.len();
            received.resize(start + wanted, 0);
            let read = stream.read_exact(&mut received[start..]);
            read.unwrap_or_else(|error| panic!("{}: {error} at byte {start}", self.name));
            sleep(self.pause);
        }
        let start = received.len();
        received.resize(length, 0);
        let read = stream.read_exact(&mut received[start..]);
        read.unwrap_or_else(|error| panic!("{}: {error} in the end", self.name));
        assert!(received == expected, "{}: wrong bytes", self.name);
        println!("{}: {start} bytes in {time:?}, then the rest", self.name);
    }
}

#[test]
#[ignore = "takes 3 minutes"]
fn slow_readers_of_eight_shapes_get_everything_at_the_default_timeouts() {
    let site = tempfile::tempdir().unwrap();
    let bytes = test_bytes(40 << 20);
    fs::write(site.path().join("file"), &bytes).unwrap();
    let server = Server::start(site.path(), &[]);
    let address = server.address();
    std::thread::scope(|scope| {
        for reader in &READERS {
            scope.spawn(|| reader.read(address, &bytes, Duration::from_secs(150)));
        }
    });
    assert!(server.stop().status.success());
}

/// The lengths of the files that busy clients request.
const LENGTHS: [usize; 5] = [0, 1000, 20_000, 100_000, 1 << 20];

fn busy_site(directory: &Path) {
    for length in LENGTHS {
        fs::write(directory.join(format!("{length}")), test_bytes(length)).unwrap();
    }
}

/// Requests files over one connection until told to stop, or until the server closes it between two
/// responses. Every response must be complete.
fn be_busy(
    mut stream: TcpStream,
    number: usize,
    bytes: &[u8],
    is_over: &AtomicBool,
    count: &AtomicU64,
) {
    for at in number.. {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        let length = LENGTHS[at % LENGTHS.len()];
        let request = format!("GET /{length}?{at} HTTP/1.1\r\nHost: a\r\n\r\n");
        // The server may have closed an idle connection while the request was on its way.
        if stream.write_all(request.as_bytes()).is_err() || stream.peek(&mut [0]).unwrap_or(0) == 0
        {
            return;
        }
        let response = read_response(&mut stream).expect("a response that has begun is complete");
        assert_eq!(response.status, 200);
        assert!(response.body == bytes[..length], "wrong bytes");
        count.fetch_add(1, Ordering::Relaxed);
        if response.header("connection") == Some("close") {
            return;
        }
    }
}

/// Starts busy clients. Returns their threads.
fn start_busy(
    address: SocketAddr,
    clients: usize,
    is_over: &Arc<AtomicBool>,
    count: &Arc<AtomicU64>,
) -> Vec<std::thread::JoinHandle<()>> {
    let bytes = Arc::new(test_bytes(1 << 20));
    let start = |number| {
        let stream = connect(address);
        let bytes = Arc::clone(&bytes);
        let (is_over, count) = (Arc::clone(is_over), Arc::clone(count));
        spawn(move || be_busy(stream, number, &bytes, &is_over, &count))
    };
    (0..clients).map(start).collect()
}

#[test]
#[ignore = "takes a minute, and needs 12,000 descriptors for a process"]
fn ten_thousand_idle_and_a_thousand_busy_connections_are_served() {
    raise_descriptor_limit();
    let site = tempfile::tempdir().unwrap();
    busy_site(site.path());
    let server = Server::start(site.path(), &["--max-connections", "12000"]);
    let mut idle: Vec<_> = (0..10_000).map(|_| connect(server.address())).collect();
    for stream in &mut idle {
        assert_eq!(get(stream, "/1000").status, 200);
    }
    let before = server.resident_kib();
    let (is_over, count) = (Arc::default(), Arc::default());
    let busy = start_busy(server.address(), 1000, &is_over, &count);
    sleep(Duration::from_secs(30));
    is_over.store(true, Ordering::Relaxed);
    busy.into_iter().for_each(|thread| thread.join().unwrap());
    for stream in &mut idle {
        assert_eq!(get(stream, "/1000").body.len(), 1000);
    }
    println!(
        "{} responses; {before} KiB resident with the idle connections, {} KiB in the end",
        count.load(Ordering::Relaxed),
        server.resident_kib()
    );
    drop(idle);
    assert!(server.stop().status.success());
}

#[test]
#[ignore = "takes half a minute"]
fn a_signal_under_load_cuts_no_response() {
    let site = tempfile::tempdir().unwrap();
    busy_site(site.path());
    for signal in [Signal::TERM, Signal::INT] {
        for _ in 0..5 {
            let server = Server::start(site.path(), &[]);
            let (is_over, count) = (Arc::default(), Arc::default());
            let busy = start_busy(server.address(), 200, &is_over, &count);
            sleep(Duration::from_secs(2));
            server.signal(signal);
            let exit = server.wait();
            assert_eq!(exit.status.code(), Some(0), "{:?}", exit.stderr);
            busy.into_iter().for_each(|thread| thread.join().unwrap());
            println!(
                "{} responses before {signal:?}",
                count.load(Ordering::Relaxed)
            );
        }
    }
}

#[test]
#[ignore = "takes minutes"]
fn downloads_killed_200_times_leave_nothing_wrong() {
    crate::get::resume::kill_downloads(200);
}
