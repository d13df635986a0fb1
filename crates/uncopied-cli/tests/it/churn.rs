//! Tests with clients that connect, read at different speeds, and vanish at any point. Every body
//! must be complete, and nothing may leak.
//!
//! `UNCOPIED_CHURN_SECONDS` sets the duration. Each run prints its seed; to reproduce the run, set
//! `UNCOPIED_CHURN_SEED` to that seed.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{Builder, scope, sleep};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use crate::client::TEST_TIMEOUT;
use crate::data::{test_bytes, wait_until_files_are_stable};
use crate::process::{ProcessResources, anonymous_memory};
use crate::rng::{Rng, seed};
use crate::server::Server;

/// The number of clients per server. There are two servers.
const CLIENTS_PER_SERVER: u64 = 100;
/// The names and lengths of the files. `kept` has the maximum length of a file that is cached in
/// memory, `sent` is too long to be cached, and `large` is larger than a socket's buffer.
const FILES: [(&str, usize); 6] = [
    ("empty", 0),
    ("tiny", 700),
    ("page", 4096),
    ("kept", 16_384),
    ("sent", 70_001),
    ("large", 3_000_000),
];
/// The memory growth allowed at the end of the test. It is not 0, because the allocator keeps some
/// freed memory for later use.
const MAX_MEMORY_GROWTH_BYTES: u64 = 32 << 20;
/// The maximum time to wait until resources have been released. This is enough for abandoned
/// connections, which end within seconds, and for threads that read from the disk, which end after
/// being idle for ten seconds.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
struct ClientCounts {
    complete: AtomicU64,
    vanished: AtomicU64,
    reset: AtomicU64,
    half_closed: AtomicU64,
    bytes: AtomicU64,
}

fn increment(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The data that all clients share.
struct Workload {
    contents: Vec<Vec<u8>>,
    until: Instant,
    counts: ClientCounts,
}

#[test]
fn churn_leaks_nothing_and_every_body_is_complete() {
    let seed = seed("UNCOPIED_CHURN_SEED");
    let seconds = std::env::var("UNCOPIED_CHURN_SECONDS").map_or(30, |s| s.parse().unwrap());
    println!("UNCOPIED_CHURN_SEED={seed}");
    let site = tempfile::tempdir().unwrap();
    let bytes = test_bytes(FILES[FILES.len() - 1].1);
    let contents: Vec<_> = FILES
        .iter()
        .map(|(_, len)| bytes[..*len].to_vec())
        .collect();
    for ((name, _), content) in FILES.iter().zip(&contents) {
        fs::write(site.path().join(name), content).unwrap();
    }
    // Wait until the files are stable, so that the server opens each of them once and keeps it
    // open.
    wait_until_files_are_stable();
    let flags = ["--list", "--threads", "2", "--mechanism"];
    // A forced mechanism turns off in-memory caching, so `max_in_memory` is 0, and small files stay
    // open as well.
    let servers = [("auto", 16 << 10), ("splice", 0)].map(|(mechanism, max_in_memory)| {
        let server = Server::start(site.path(), &[&flags[..], &[mechanism]].concat());
        let open = FILES.iter().filter(|(_, len)| *len > max_in_memory).count();
        let before = warm_up(&server, site.path(), &contents, open, seed);
        (server, before)
    });

    let workload = Workload {
        contents,
        until: Instant::now() + Duration::from_secs(seconds),
        counts: ClientCounts::default(),
    };
    let addresses = servers.each_ref().map(|(server, _)| server.address());
    let failures = run(&workload, &addresses, CLIENTS_PER_SERVER, seed);
    assert!(failures.is_empty(), "seed {seed}: {failures:#?}");
    println!("{:?}", workload.counts);
    let counts = &workload.counts;
    for (counter, at_least) in [
        (&counts.complete, 60 * seconds),
        (&counts.vanished, 10 * seconds),
        (&counts.reset, 5 * seconds),
        (&counts.half_closed, 5 * seconds),
    ] {
        assert!(counter.load(Ordering::Relaxed) >= at_least, "{counts:?}");
    }

    for (server, (before, memory_before)) in servers {
        let after =
            ProcessResources::wait_until_within(server.id(), site.path(), &before, RELEASE_TIMEOUT);
        assert!(
            after.is_within(&before),
            "seed {seed}: {before:?} → {after:?}"
        );
        let memory = anonymous_memory(server.id());
        assert!(
            memory < memory_before + MAX_MEMORY_GROWTH_BYTES,
            "seed {seed}: {memory_before} → {memory} bytes"
        );
        println!("{before:?} → {after:?}, {memory_before} → {memory} bytes");
        let exit = server.stop();
        assert_eq!(exit.status.code(), Some(0), "{:?}", exit.stderr);
        assert_eq!(exit.stderr.len(), 2, "seed {seed}: {:?}", exit.stderr);
        println!("{}", exit.stderr[1]);
    }
}

/// Runs a few clients, so that the server fills its caches. Returns the resources and the memory
/// that the server may hold at the end of the test.
///
/// `open` is the number of files that the server keeps open, each with a descriptor. Giving
/// addresses to the first of them also creates a descriptor (`userfaultfd(2)`) and a thread.
fn warm_up(
    server: &Server,
    site: &Path,
    contents: &[Vec<u8>],
    open: usize,
    seed: u64,
) -> (ProcessResources, u64) {
    let idle = ProcessResources::of(server.id(), site);
    let workload = Workload {
        contents: contents.to_vec(),
        until: Instant::now() + Duration::from_secs(1),
        counts: ClientCounts::default(),
    };
    let failures = run(&workload, &[server.address()], 20, !seed);
    assert!(failures.is_empty(), "seed {seed}: {failures:#?}");
    let limit = ProcessResources {
        descriptors: idle.descriptors + open + 1,
        mappings: 0,
        threads: idle.threads + 1,
        ..idle
    };
    let held = ProcessResources::wait_until_within(server.id(), site, &limit, RELEASE_TIMEOUT);
    assert!(held.is_within(&limit), "seed {seed}: {limit:?} → {held:?}");
    (limit, anonymous_memory(server.id()))
}

/// Runs `clients` clients per address until the end of the workload. Returns their errors.
fn run(workload: &Workload, addresses: &[SocketAddr], clients: u64, seed: u64) -> Vec<String> {
    scope(|threads| {
        let each = (0..clients).flat_map(|number| {
            addresses.iter().zip(0..).map(move |(address, which)| {
                let rng = Rng::new(seed, number << 8 | which);
                let client = Builder::new().stack_size(256 << 10);
                let run = move || run_client(workload, *address, rng);
                client.spawn_scoped(threads, run).unwrap()
            })
        });
        // Collect the clients, so that all are started before the first is waited for. Otherwise,
        // the lazy iterator would run one client after another.
        let running: Vec<_> = each.collect();
        let ended = running.into_iter().map(|client| client.join().unwrap());
        ended.filter_map(Result::err).collect()
    })
}

/// Runs one client, which opens one connection after another.
fn run_client(workload: &Workload, address: SocketAddr, mut rng: Rng) -> Result<(), String> {
    while Instant::now() < workload.until {
        sleep(rng.duration_below_millis(300));
        let mut client =
            ChurnClient::connect(address, &mut rng).map_err(|error| error.to_string())?;
        client.visit(workload, &mut rng)?;
    }
    Ok(())
}

/// How a client disconnects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Departure {
    /// Closes after the last response.
    Regular,
    /// Closes in the middle of a request or a response.
    Vanish,
    /// Resets the connection (SO_LINGER of 0).
    Reset,
    /// Closes its sending side after the last request, but keeps reading.
    HalfClose,
}

struct ChurnClient {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The maximum pause after each read.
    max_pause_millis: usize,
    /// The time at which bytes last arrived.
    last_read: Instant,
}

impl ChurnClient {
    fn connect(address: SocketAddr, rng: &mut Rng) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        if rng.chance(50) {
            // Use a small window, so that the send buffer of the server's socket is often full.
            socket.set_recv_buffer_size(16 << 10)?;
        }
        socket.connect(&address.into())?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(TEST_TIMEOUT))?;
        Ok(Self {
            stream,
            buffer: vec![0; 1 + rng.below(64 << 10)],
            start: 0,
            end: 0,
            max_pause_millis: [0, 0, 1, 4][rng.below(4)],
            last_read: Instant::now(),
        })
    }

    /// Sends requests on one connection and checks the responses. An error means that the server is
    /// at fault.
    fn visit(&mut self, workload: &Workload, rng: &mut Rng) -> Result<(), String> {
        let departure = [
            Departure::Regular,
            Departure::Vanish,
            Departure::Reset,
            Departure::HalfClose,
        ][rng.below(4)];
        let rounds = rng.below(5);
        for round in 0..=rounds {
            let is_last = round == rounds;
            // The requests are pipelined. Their responses must arrive in this order.
            let files: Vec<_> = (0..=rng.below(3)).map(|_| pick(rng)).collect();
            let requests: String = files.iter().map(|file| request(*file)).collect();
            let leaves = is_last && matches!(departure, Departure::Vanish | Departure::Reset);
            let sent = if leaves && rng.chance(20) {
                rng.below(requests.len())
            } else {
                requests.len()
            };
            if self.stream.write_all(&requests.as_bytes()[..sent]).is_err() {
                return Err("the server closed the connection before a request".into());
            }
            if leaves {
                let all: usize = files.iter().map(|file| FILES[*file].1 + 300).sum();
                let point = rng.below(all + 1);
                self.read_up_to(point)
                    .map_err(|error| format!("{departure:?}: {error}"))?;
                self.leave(departure, &workload.counts);
                return Ok(());
            }
            if is_last && departure == Departure::HalfClose {
                increment(&workload.counts.half_closed);
                self.stream
                    .shutdown(Shutdown::Write)
                    .map_err(|error| error.to_string())?;
            }
            for file in files {
                let content = &workload.contents[file];
                let name = FILES[file].0;
                let failure = |why| format!("{name}, {departure:?}, round {round}: {why}");
                if !self
                    .check_response(content, workload, rng)
                    .map_err(failure)?
                {
                    return Ok(());
                }
            }
            sleep(rng.duration_below_millis(500));
        }
        Ok(())
    }

    fn leave(&self, departure: Departure, counts: &ClientCounts) {
        increment(&counts.vanished);
        if departure == Departure::Reset {
            increment(&counts.reset);
            // Ignore an error: the server may have closed the connection first.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// Reads one response, and checks it against `content`. Returns false if the workload ends
    /// before the whole body has arrived.
    fn check_response(
        &mut self,
        content: &[u8],
        workload: &Workload,
        rng: &mut Rng,
    ) -> Result<bool, String> {
        let length = self.read_head()?;
        if length != content.len() {
            return Err(format!("wrong length: {length}"));
        }
        let mut at = 0;
        while at < length {
            let piece = self
                .fill_buffer()
                .map_err(|error| format!("after {at} bytes: {error}"))?;
            let taken = piece.min(length - at);
            if self.buffer[self.start..][..taken] != content[at..][..taken] {
                return Err(format!("wrong bytes at {at}"));
            }
            self.start += taken;
            at += taken;
            if Instant::now() >= workload.until && at < length {
                return Ok(false);
            }
            if self.max_pause_millis > 0 && rng.chance(30) {
                sleep(rng.duration_below_millis(self.max_pause_millis));
            }
        }
        workload
            .counts
            .bytes
            .fetch_add(length as u64, Ordering::Relaxed);
        increment(&workload.counts.complete);
        Ok(true)
    }

    /// Reads a head and returns the length of the body.
    fn read_head(&mut self) -> Result<usize, String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            self.fill_buffer()
                .map_err(|error| format!("in a head: {error}"))?;
            head.push(self.buffer[self.start]);
            self.start += 1;
        }
        let head = String::from_utf8_lossy(&head);
        let value = |line: &str| Some(line.strip_prefix("content-length: ")?.parse().ok());
        if !head.starts_with("HTTP/1.1 200 ") {
            return Err(format!("{head:?}"));
        }
        let length = head.lines().find_map(value).flatten();
        length.ok_or_else(|| format!("no length in {head:?}"))
    }

    /// Reads from the connection if the buffer is empty. Returns the number of buffered bytes,
    /// which is at least 1.
    fn fill_buffer(&mut self) -> io::Result<usize> {
        if self.start == self.end {
            self.start = 0;
            self.end = self.stream.read(&mut self.buffer)?;
            if self.end == 0 {
                let silence = self.last_read.elapsed();
                return Err(io::Error::other(format!(
                    "closed, {silence:?} after its last bytes"
                )));
            }
            self.last_read = Instant::now();
        }
        Ok(self.end - self.start)
    }

    /// Reads `point` bytes, or fewer if no more bytes arrive for 20 ms.
    fn read_up_to(&mut self, point: usize) -> io::Result<()> {
        let timeout = Duration::from_millis(20);
        self.stream.set_read_timeout(Some(timeout))?;
        let mut left = point;
        while left > 0 {
            match self.fill_buffer() {
                Ok(buffered) => {
                    let taken = buffered.min(left);
                    self.start += taken;
                    left -= taken;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Picks a file, and returns its index. Larger files are picked less often; the empty file is rare
/// too.
fn pick(rng: &mut Rng) -> usize {
    let number = rng.below(64);
    match number {
        0..4 => 0,
        4..26 => 1,
        26..40 => 2,
        40..52 => 3,
        52..62 => 4,
        _ => 5,
    }
}

fn request(file: usize) -> String {
    format!("GET /{} HTTP/1.1\r\nHost: churn\r\n\r\n", FILES[file].0)
}
