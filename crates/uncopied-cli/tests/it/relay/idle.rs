//! Idle connections hold no pipes and little memory.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::relay;
use crate::client::{TEST_TIMEOUT, connect};
use crate::process::{ProcessResources, raise_descriptor_limit};
use crate::skip::skip;

/// The number of idle connections, if the descriptor limit allows that.
const IDLE_CONNECTIONS: usize = 10_000;
/// The smallest number with which the measurement means something.
const MIN_CONNECTIONS: usize = 2000;
/// The number of connections that the queue of one target holds.
const QUEUE: usize = 4000;

/// Listens, but leaves its connections in the kernel's queue, where they take no descriptors of
/// this process.
fn queueing() -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(QUEUE as i32).unwrap();
    socket.into()
}

#[test]
fn ten_thousand_idle_connections_hold_no_pipes_and_little_memory() {
    let name = "ten_thousand_idle_connections_hold_no_pipes_and_little_memory";
    // The relay needs two descriptors for each, and some for itself.
    let possible = raise_descriptor_limit();
    let count = IDLE_CONNECTIONS.min(possible.saturating_sub(300) / 2);
    let backlog = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let backlog: usize = backlog.trim().parse().unwrap();
    if count < MIN_CONNECTIONS || backlog < QUEUE {
        skip(
            name,
            "it needs 20,300 descriptors and a net.core.somaxconn of 4000",
        );
        return;
    }
    println!("{count} connections");
    let targets: Vec<_> = (0..count.div_ceil(QUEUE)).map(|_| queueing()).collect();
    let addresses: Vec<_> = targets.iter().map(|t| t.local_addr().unwrap()).collect();
    let limit = count.to_string();
    let flags = [
        "--threads",
        "1",
        "--health-interval",
        "off",
        "--max-connections",
        &limit,
        // The targets do not end their streams.
        "--grace",
        "0",
    ];
    let relay = relay(&addresses, &flags);
    let open = || {
        // A byte in each direction, so that each connection has been in use.
        let mut stream = connect(relay.address());
        stream.write_all(b"x").unwrap();
        stream
    };
    let resources = || ProcessResources::of(relay.id(), Path::new("/"));
    let at_start = resources();
    let wait_for = |connections: usize| {
        while resources().sockets < at_start.sockets + 2 * connections {
            thread::sleep(Duration::from_millis(20));
        }
    };
    let warm: Vec<TcpStream> = (0..100).map(|_| open()).collect();
    wait_for(warm.len());
    let before = relay.resident_kib();
    let idle: Vec<TcpStream> = (warm.len()..count).map(|_| open()).collect();
    wait_for(count);
    let kib_each = (relay.resident_kib() - before) / idle.len() as f64;
    println!("{kib_each:.2} KiB for each connection");
    assert!(kib_each <= 2.0 * 8.0, "{kib_each} KiB for each connection");
    assert_eq!(resources().pipes, at_start.pipes);
    // They still work: each byte from a target arrives at one client.
    let mut servers = Vec::new();
    for target in targets.iter().cycle().take(20) {
        let (mut server, _) = target.accept().unwrap();
        server.read_exact(&mut [0]).unwrap();
        server.write_all(b"y").unwrap();
        servers.push(server);
    }
    let clients: Vec<_> = warm.iter().chain(&idle).collect();
    for client in &clients {
        client.set_nonblocking(true).unwrap();
    }
    let began = Instant::now();
    let mut arrived = 0;
    while arrived < servers.len() {
        assert!(
            began.elapsed() < TEST_TIMEOUT,
            "{arrived} bytes have arrived"
        );
        for mut client in clients.iter().copied() {
            arrived += client.read(&mut [0]).unwrap_or(0);
        }
    }
    assert_eq!(resources().pipes, at_start.pipes);
    drop((warm, idle));
    let exit = relay.stop();
    assert!(exit.status.success());
}
