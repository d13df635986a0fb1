//! Tests that idle connections take little memory and still serve requests afterwards.

use std::net::TcpStream;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::client::{connect, get};
use crate::server::{Server, site};
use crate::skip::skip;

/// The number of idle connections whose memory is measured.
const IDLE_CONNECTIONS: usize = 3000;

#[test]
fn idle_connections_cost_little_memory_and_serve_requests_again() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let needed = IDLE_CONNECTIONS as u64 + 500;
    if limit.maximum.is_some_and(|maximum| maximum < needed) {
        skip(
            "idle_connections_cost_little_memory_and_serve_requests_again",
            &format!("it needs {needed} descriptors"),
        );
        return;
    }
    let site = site();
    let server = Server::start(site.path(), &["--threads", "1"]);
    let open_connection = || -> TcpStream {
        let mut stream = connect(server.address());
        assert_eq!(get(&mut stream, "/").body, b"hello\n");
        stream
    };
    let mut idle: Vec<_> = (0..100).map(|_| open_connection()).collect();
    let before = server.resident_kib();
    idle.extend((0..IDLE_CONNECTIONS).map(|_| open_connection()));
    let kib_each = (server.resident_kib() - before) / IDLE_CONNECTIONS as f64;
    assert!(kib_each <= 3.0, "{kib_each} KiB per idle connection");
    for stream in &mut idle {
        for _ in 0..2 {
            assert_eq!(get(stream, "/").body, b"hello\n");
        }
    }
    let exit = server.stop();
    assert!(exit.status.success());
}
