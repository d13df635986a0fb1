//! Clients that come, read at any speed, and vanish at any point: every body is whole, and nothing is
//! left behind.
//!
//! `UNCOPIED_CHURN_SECONDS` makes it longer, `UNCOPIED_CHURN_SEED` repeats it.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{Builder, scope, sleep};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use crate::client::PATIENCE;
use crate::dice::{Dice, seed};
use crate::process::{Held, anonymous_memory};
use crate::server::Server;
use crate::system_calls::noise;

/// Clients of each of the two servers.
const CLIENTS: u64 = 100;
/// Name and length: in memory, around the line between memory and sendfile, and more than a socket
/// buffers. Small ones are asked for more often.
const FILES: [(&str, usize); 6] = [
    ("empty", 0),
    ("tiny", 700),
    ("page", 4096),
    ("kept", 16_384),
    ("sent", 70_001),
    ("large", 3_000_000),
];
/// How much more memory a server may hold afterwards: what the allocator keeps for the next busy time.
const MEMORY_SLACK: u64 = 32 << 20;
/// Connections that were left end within seconds, and the threads that wait for the disk after ten.
const SETTLING: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
struct Tally {
    whole: AtomicU64,
    vanished: AtomicU64,
    reset: AtomicU64,
    half_closed: AtomicU64,
    bytes: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What all clients know.
struct Scene {
    contents: Vec<Vec<u8>>,
    until: Instant,
    tally: Tally,
}

#[test]
fn churn_leaves_nothing_behind_and_every_body_is_whole() {
    let seed = seed("UNCOPIED_CHURN_SEED");
    let seconds = std::env::var("UNCOPIED_CHURN_SECONDS").map_or(30, |s| s.parse().unwrap());
    println!("UNCOPIED_CHURN_SEED={seed}");
    let site = tempfile::tempdir().unwrap();
    let bytes = noise(FILES[FILES.len() - 1].1);
    let contents: Vec<_> = FILES
        .iter()
        .map(|(_, len)| bytes[..*len].to_vec())
        .collect();
    for ((name, _), content) in FILES.iter().zip(&contents) {
        fs::write(site.path().join(name), content).unwrap();
    }
    // Once the files have settled, each is opened once and kept.
    sleep(Duration::from_millis(3500));
    let flags = ["--threads", "2", "--mechanism"];
    // A mechanism that is forced is forced for small files too: then none is kept in memory.
    let servers = [("auto", 16 << 10), ("splice", 0)].map(|(how, in_memory)| {
        let server = Server::start(site.path(), &[&flags[..], &[how]].concat());
        let open = FILES.iter().filter(|(_, len)| *len > in_memory).count();
        let before = warm_up(&server, site.path(), &contents, open, seed);
        (server, before)
    });

    let scene = Scene {
        contents,
        until: Instant::now() + Duration::from_secs(seconds),
        tally: Tally::default(),
    };
    let addresses = servers.each_ref().map(|(server, _)| server.address());
    let failures = run(&scene, &addresses, CLIENTS, seed);
    assert!(failures.is_empty(), "seed {seed}: {failures:#?}");
    println!("{:?}", scene.tally);
    let tally = &scene.tally;
    for (counter, at_least) in [
        (&tally.whole, 60 * seconds),
        (&tally.vanished, 10 * seconds),
        (&tally.reset, 5 * seconds),
        (&tally.half_closed, 5 * seconds),
    ] {
        assert!(counter.load(Ordering::Relaxed) >= at_least, "{tally:?}");
    }

    for (server, (before, memory_before)) in servers {
        let after = Held::settle(server.id(), site.path(), &before, SETTLING);
        assert!(
            after.is_within(&before),
            "seed {seed}: {before:?} → {after:?}"
        );
        let memory = anonymous_memory(server.id());
        assert!(
            memory < memory_before + MEMORY_SLACK,
            "seed {seed}: {memory_before} → {memory} bytes"
        );
        println!("{before:?} → {after:?}, {memory_before} → {memory} bytes");
        let end = server.stop();
        assert_eq!(end.status.code(), Some(0), "{:?}", end.said);
        assert_eq!(end.said.len(), 2, "seed {seed}: {:?}", end.said);
        println!("{}", end.said[1]);
    }
}

/// Lets a few clients in, and returns what the server holds once they have gone.
///
/// The cache keeps `open` files, each with a descriptor and a mapping.
fn warm_up(
    server: &Server,
    site: &Path,
    contents: &[Vec<u8>],
    open: usize,
    seed: u64,
) -> (Held, u64) {
    let idle = Held::by(server.id(), site);
    let scene = Scene {
        contents: contents.to_vec(),
        until: Instant::now() + Duration::from_secs(1),
        tally: Tally::default(),
    };
    let failures = run(&scene, &[server.address()], 20, !seed);
    assert!(failures.is_empty(), "seed {seed}: {failures:#?}");
    let limit = Held {
        descriptors: idle.descriptors + open,
        mappings: open,
        ..idle
    };
    let held = Held::settle(server.id(), site, &limit, SETTLING);
    assert!(held.is_within(&limit), "seed {seed}: {limit:?} → {held:?}");
    (limit, anonymous_memory(server.id()))
}

/// Runs clients until the scene is over. Returns what they have to complain about.
fn run(scene: &Scene, addresses: &[SocketAddr], clients: u64, seed: u64) -> Vec<String> {
    scope(|threads| {
        let each = (0..clients).flat_map(|number| {
            addresses.iter().zip(0..).map(move |(address, which)| {
                let dice = Dice::new(seed, number << 8 | which);
                let client = Builder::new().stack_size(256 << 10);
                let life = move || live(scene, *address, dice);
                client.spawn_scoped(threads, life).unwrap()
            })
        });
        // All are started before the first is waited for.
        let running: Vec<_> = each.collect();
        let ended = running.into_iter().map(|client| client.join().unwrap());
        ended.filter_map(Result::err).collect()
    })
}

/// One client: a connection after the other.
fn live(scene: &Scene, address: SocketAddr, mut dice: Dice) -> Result<(), String> {
    while Instant::now() < scene.until {
        sleep(dice.millis(300));
        let mut peer = Peer::connect(address, &mut dice).map_err(|error| error.to_string())?;
        peer.visit(scene, &mut dice)?;
    }
    Ok(())
}

/// How a client goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// After the last answer.
    Polite,
    /// Closes in the middle of something.
    Vanish,
    /// Closes with a reset (SO_LINGER of 0).
    Reset,
    /// Closes its sending side after the last request, and reads on.
    HalfClose,
}

struct Peer {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Rests that long at most after each piece.
    rest_millis: usize,
    /// When bytes last came.
    heard: Instant,
}

impl Peer {
    fn connect(address: SocketAddr, dice: &mut Dice) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        if dice.chance(50) {
            // Narrow: the server meets a full socket again and again.
            socket.set_recv_buffer_size(16 << 10)?;
        }
        socket.connect(&address.into())?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            buffer: vec![0; 1 + dice.below(64 << 10)],
            start: 0,
            end: 0,
            rest_millis: [0, 0, 1, 4][dice.below(4)],
            heard: Instant::now(),
        })
    }

    /// Some requests on one connection. An error is a complaint about the server.
    fn visit(&mut self, scene: &Scene, dice: &mut Dice) -> Result<(), String> {
        let exit = [Exit::Polite, Exit::Vanish, Exit::Reset, Exit::HalfClose][dice.below(4)];
        let rounds = dice.below(5);
        for round in 0..=rounds {
            let is_last = round == rounds;
            // Several requests at once: the answers come in this order.
            let files: Vec<_> = (0..=dice.below(3)).map(|_| pick(dice)).collect();
            let requests: String = files.iter().map(|file| request(*file)).collect();
            let leaves = is_last && matches!(exit, Exit::Vanish | Exit::Reset);
            let sent = if leaves && dice.chance(20) {
                dice.below(requests.len())
            } else {
                requests.len()
            };
            if self.stream.write_all(&requests.as_bytes()[..sent]).is_err() {
                return Err("the server closed before a request".into());
            }
            if leaves {
                let all: usize = files.iter().map(|file| FILES[*file].1 + 300).sum();
                let point = dice.below(all + 1);
                self.read_up_to(point)
                    .map_err(|error| format!("{exit:?}: {error}"))?;
                self.leave(exit, &scene.tally);
                return Ok(());
            }
            if is_last && exit == Exit::HalfClose {
                count(&scene.tally.half_closed);
                self.stream
                    .shutdown(Shutdown::Write)
                    .map_err(|error| error.to_string())?;
            }
            for file in files {
                let content = &scene.contents[file];
                let name = FILES[file].0;
                let complaint = |why| format!("{name}, {exit:?}, round {round}: {why}");
                if !self.answer(content, scene, dice).map_err(complaint)? {
                    return Ok(());
                }
            }
            sleep(dice.millis(500));
        }
        Ok(())
    }

    fn leave(&self, exit: Exit, tally: &Tally) {
        count(&tally.vanished);
        if exit == Exit::Reset {
            count(&tally.reset);
            // Fails only if the server has closed first.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// Reads one answer and compares it. False: the time was over before its end.
    fn answer(&mut self, content: &[u8], scene: &Scene, dice: &mut Dice) -> Result<bool, String> {
        let length = self.head()?;
        if length != content.len() {
            return Err(format!("a length of {length}"));
        }
        let mut at = 0;
        while at < length {
            let piece = self
                .piece()
                .map_err(|error| format!("after {at} bytes: {error}"))?;
            let taken = piece.min(length - at);
            if self.buffer[self.start..][..taken] != content[at..][..taken] {
                return Err(format!("other bytes at {at}"));
            }
            self.start += taken;
            at += taken;
            if Instant::now() >= scene.until && at < length {
                return Ok(false);
            }
            if self.rest_millis > 0 && dice.chance(30) {
                sleep(dice.millis(self.rest_millis));
            }
        }
        scene
            .tally
            .bytes
            .fetch_add(length as u64, Ordering::Relaxed);
        count(&scene.tally.whole);
        Ok(true)
    }

    /// The length that the next head tells.
    fn head(&mut self) -> Result<usize, String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            self.piece()
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

    /// How many bytes are at hand, at least one.
    fn piece(&mut self) -> io::Result<usize> {
        if self.start == self.end {
            self.start = 0;
            self.end = self.stream.read(&mut self.buffer)?;
            if self.end == 0 {
                let silence = self.heard.elapsed();
                return Err(io::Error::other(format!(
                    "closed, {silence:?} after its last bytes"
                )));
            }
            self.heard = Instant::now();
        }
        Ok(self.end - self.start)
    }

    /// Reads so many bytes, or fewer if there are no more for now.
    fn read_up_to(&mut self, point: usize) -> io::Result<()> {
        let patience = Duration::from_millis(20);
        self.stream.set_read_timeout(Some(patience))?;
        let mut left = point;
        while left > 0 {
            match self.piece() {
                Ok(there) => {
                    let taken = there.min(left);
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

/// Each file is asked for half as often as the one before, the empty one seldom.
fn pick(dice: &mut Dice) -> usize {
    let lot = dice.below(64);
    match lot {
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
