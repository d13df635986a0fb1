//! Everything that is hard for a relay, at once: messages and bulk data, delays, half-closed
//! streams, resets on either side, and targets that die and come back.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::chaotic_ends::{Random, abort, exchange};
use super::{metrics, relay};
use crate::client::{TEST_TIMEOUT, connect};
use crate::process::ProcessResources;

/// How long the chaos lasts, unless `UNCOPIED_SOAK_SECONDS` says otherwise.
const CHAOS: Duration = Duration::from_secs(60);

const CLIENTS: u64 = 8;

/// The connections that clients wait for, by the number with which each client begins.
type Waiting = Mutex<HashMap<u64, Sender<TargetEnd>>>;

/// The end of a connection at a target.
struct TargetEnd {
    socket: Arc<TcpStream>,
    /// Set before the target dies.
    is_cut: Arc<AtomicBool>,
}

/// Accepts connections until it dies. Then no connection is accepted for a while, and those that
/// are open are reset.
fn run_target(address: SocketAddr, mut random: Random, waiting: &Waiting, until: Instant) -> u64 {
    let mut deaths = 0;
    while Instant::now() < until {
        let listener = TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let dies_at = Instant::now() + Duration::from_millis(500 + random.below(4_000));
        let mut open = Vec::new();
        while Instant::now() < dies_at.min(until) {
            match listener.accept() {
                Ok((socket, _)) => open.extend(hand_over(socket, waiting)),
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
        if Instant::now() >= until {
            return deaths;
        }
        drop(listener);
        deaths += 1;
        for TargetEnd { socket, is_cut } in open {
            is_cut.store(true, Relaxed);
            // The exchange may have ended.
            let _ = abort(&socket);
        }
        thread::sleep(Duration::from_millis(random.below(700)));
    }
    deaths
}

/// Gives a connection to the client that has made it.
fn hand_over(mut socket: TcpStream, waiting: &Waiting) -> Option<TargetEnd> {
    let mut number = [0; 8];
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    // Health checks, and clients whose relay has given up, send no number.
    socket.read_exact(&mut number).ok()?;
    let client = waiting
        .lock()
        .unwrap()
        .remove(&u64::from_ne_bytes(number))?;
    let (socket, is_cut) = (Arc::new(socket), Arc::default());
    let end = || TargetEnd {
        socket: Arc::clone(&socket),
        is_cut: Arc::clone(&is_cut),
    };
    client.send(end()).ok()?;
    Some(end())
}

/// Makes one connection after the other. Returns how many have ended with every byte checked.
fn run_client(address: SocketAddr, first: u64, waiting: &Waiting, until: Instant) -> u64 {
    let mut random = Random(first);
    let mut whole = 0;
    for number in (first..).step_by(CLIENTS as usize) {
        if Instant::now() >= until {
            break;
        }
        let (sender, accepted) = channel();
        waiting.lock().unwrap().insert(number, sender);
        let mut client = connect(address);
        client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        // Fails if no target is up.
        let target = match client.write_all(&number.to_ne_bytes()) {
            Ok(()) => accepted.recv_timeout(Duration::from_secs(2)).ok(),
            Err(_) => None,
        };
        waiting.lock().unwrap().remove(&number);
        let Some(target) = target else { continue };
        let seed = Random(random.below(u64::MAX));
        exchange(&client, &target.socket, seed, &target.is_cut);
        whole += u64::from(!target.is_cut.load(Relaxed));
    }
    whole
}

#[test]
fn no_byte_is_lost_while_targets_die_and_connections_are_reset() {
    let soak = std::env::var("UNCOPIED_SOAK_SECONDS");
    let lasts = soak.map_or(CHAOS, |seconds| {
        Duration::from_secs(seconds.parse().unwrap())
    });
    let targets = [(); 3].map(|()| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    });
    let flags = ["--metrics", "127.0.0.1:0", "--health-interval", "300ms"];
    let relay = relay(&targets, &flags);
    let before = ProcessResources::of(relay.id(), "/".as_ref());
    let until = Instant::now() + lasts;
    let waiting = Waiting::default();
    let (deaths, whole) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for (seed, address) in (100..).zip(targets) {
            let (waiting, deaths) = (&waiting, &deaths);
            // A target outlives its clients.
            let until = until + Duration::from_secs(1);
            scope.spawn(move || {
                deaths.fetch_add(run_target(address, Random(seed), waiting, until), Relaxed);
            });
        }
        for first in 0..CLIENTS {
            let (waiting, whole) = (&waiting, &whole);
            let address = relay.address();
            scope.spawn(move || {
                whole.fetch_add(run_client(address, first, waiting, until), Relaxed);
            });
        }
    });
    let (deaths, whole) = (deaths.into_inner(), whole.into_inner());
    println!("{whole} connections were whole, and targets died {deaths} times");
    assert!(
        whole > 20 && deaths > 3,
        "{whole} connections, {deaths} deaths"
    );
    // Nothing of the connections is left, except idle pipes of the workers.
    let limit = ProcessResources {
        pipes: before.pipes + 16 * 2,
        descriptors: before.descriptors + 16 * 2,
        ..before
    };
    let site = "/".as_ref();
    let after = ProcessResources::wait_until_within(relay.id(), site, &limit, TEST_TIMEOUT);
    assert!(after.is_within(&limit), "{after:?}, not within {limit:?}");
    let metrics = metrics(&relay);
    assert_eq!(metrics.value("pipes_in_use"), 0);
    assert_eq!(metrics.value("connections_open"), 0);
    assert!(relay.stop().status.success());
}
