//! Idle connections cost little, and come back.

use std::net::TcpStream;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::client::{connect, get};
use crate::server::{Server, site};

/// More than the 1,024 that keep their buffers.
const CONNECTIONS: usize = 3000;

#[test]
fn idle_connections_take_little_memory_and_answer_again() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let needed = CONNECTIONS as u64 + 500;
    if limit.maximum.is_some_and(|maximum| maximum < needed) {
        assert!(
            std::env::var_os("UNCOPIED_TEST_FORBID_SKIPS").is_none(),
            "this test needs {needed} descriptors"
        );
        println!("SKIP idle connections: they need {needed} descriptors");
        return;
    }
    let site = site();
    let server = Server::start(site.path(), &["--threads", "1"]);
    let one_more = || -> TcpStream {
        let mut stream = connect(server.address());
        assert_eq!(get(&mut stream, "/").body, b"hello\n");
        stream
    };
    let mut idle: Vec<_> = (0..100).map(|_| one_more()).collect();
    let before = server.resident_kib();
    idle.extend((0..CONNECTIONS).map(|_| one_more()));
    let each = (server.resident_kib() - before) / CONNECTIONS as f64;
    assert!(each <= 10.0, "{each} KiB for each idle connection");
    // The oldest have been parked, and the youngest not.
    for stream in &mut idle {
        for _ in 0..2 {
            assert_eq!(get(stream, "/").body, b"hello\n");
        }
    }
    let end = server.stop();
    assert!(end.status.success());
}
