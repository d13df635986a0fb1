//! Tests of `uncopied relay`.
//!
//! | module | what it checks |
//! |---|---|
//! | `config` | the configuration: flags, environment, file, `--check`, mistakes |
//! | `streams` | bytes, ends and resets of streams reach the other side; mechanisms, rates |
//! | `targets` | another target is tried, refusals are clear, PROXY headers in and out |
//! | `limits` | time limits, `--max-connections`, running out of descriptors, leaks |
//! | `lifecycle` | draining, reloads, signals, handing sockets to the next process |
//! | `observing` | the access log, the metrics and the totals agree with what was sent |
//! | `chaos` | all of it at once, while targets die and come back |
//! | `idle` | 10,000 idle connections hold no pipes and little memory |
//! | `programs` | TLS, HTTP with kept connections, Redis and PostgreSQL work through a relay |
//!
//! `peers` has the servers to which these tests relay.

mod chaos;
/// Clients and servers that do what is hard for a relay, which the tests of the library share.
#[path = "../../../../uncopied/tests/it/relay_chaos.rs"]
mod chaotic_ends;
mod config;
mod idle;
mod lifecycle;
mod limits;
mod observing;
mod peers;
mod programs;
mod streams;
mod targets;

use std::io::Read;
use std::net::{SocketAddr, TcpStream};

use crate::server::{Server, program};

/// Relays from a free port of 127.0.0.1 to `targets`, with additional flags.
fn relay(targets: &[SocketAddr], flags: &[&str]) -> Server {
    let mut command = program();
    command.args(["relay", "127.0.0.1:0"]);
    command.args(targets.iter().map(ToString::to_string));
    command.args(flags);
    let addresses = 1 + usize::from(flags.contains(&"--metrics"));
    Server::spawn(command, addresses)
}

/// Asserts that the peer has cut the stream, after `before`.
fn assert_reset(mut stream: &TcpStream, before: &[u8]) {
    let mut bytes = Vec::new();
    let error = stream.read_to_end(&mut bytes).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    assert_eq!(bytes, before);
}

/// Returns the metrics of a relay with `--metrics`.
fn metrics(relay: &Server) -> Metrics {
    let address: SocketAddr = relay.urls[1]
        .trim_start_matches("http://")
        .trim_end_matches("/metrics")
        .parse()
        .unwrap();
    let mut stream = crate::client::connect(address);
    let response = crate::client::get(&mut stream, "/metrics");
    assert_eq!(response.status, 200);
    Metrics(String::from_utf8(response.body).unwrap())
}

/// The text of the metrics.
struct Metrics(String);

impl Metrics {
    /// Returns the value of a metric, named without its common prefix, and with its labels.
    fn value(&self, name: &str) -> u64 {
        let value = self.0.lines().find_map(|line| {
            let line = line.strip_prefix("uncopied_relay_")?;
            line.strip_prefix(name)?.strip_prefix(' ')
        });
        value
            .unwrap_or_else(|| panic!("{name} is missing in {}", self.0))
            .parse()
            .unwrap()
    }
}
