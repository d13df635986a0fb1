//! The access log, the metrics and the totals agree with what was sent.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::thread;

use super::peers::{Target, serve};
use super::{metrics, relay};
use crate::client::{TEST_TIMEOUT, connect, read_to_end};
use crate::data::test_bytes;

/// Starts a server that reads the whole request and sends twice as many bytes.
fn doubling() -> SocketAddr {
    serve(|mut stream| {
        let request = read_to_end(&mut stream);
        for _ in 0..2 {
            let _ = stream.write_all(&request);
        }
    })
}

#[test]
fn the_log_the_metrics_and_the_totals_agree_with_what_was_sent() {
    let target = doubling();
    let flags = ["--access-log", "json", "--metrics", "127.0.0.1:0"];
    let mut relay = relay(&[target], &flags);
    relay.collect_stdout();
    let lens = [0, 5, 300_000, 2 << 20];
    for len in lens {
        let bytes = test_bytes(len);
        let mut stream = connect(relay.address());
        stream.write_all(&bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut stream).len(), 2 * len);
    }
    let began = std::time::Instant::now();
    while metrics(&relay).value("connections_open") > 0 {
        assert!(began.elapsed() < TEST_TIMEOUT);
    }
    let metrics = metrics(&relay);
    let exit = relay.stop();
    let lines: Vec<serde_json::Value> = exit
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), lens.len());
    let total: usize = lens.iter().sum();
    for (direction, factor, name) in [("to_target", 1, "targets"), ("to_client", 2, "clients")] {
        let logged = |key: &str| {
            let values = lines
                .iter()
                .map(|line| line[direction][key].as_u64().unwrap());
            values.collect::<Vec<_>>()
        };
        let expected: Vec<_> = lens.iter().map(|len| (len * factor) as u64).collect();
        // A line is written once its client has seen the end, so it may come after another one.
        let mut bytes = logged("bytes");
        bytes.sort_unstable();
        assert_eq!(bytes, expected);
        let [splice, copy]: [u64; 2] = ["splice", "copy"].map(|mechanism| {
            let sum = logged(mechanism).iter().sum();
            let labels = format!("direction=\"{direction}\",mechanism=\"{mechanism}\"");
            assert_eq!(metrics.value(&format!("bytes_total{{{labels}}}")), sum);
            sum
        });
        assert!(splice > 1 << 20, "bulk data is spliced: {splice}");
        assert_eq!(splice + copy, (total * factor) as u64);
        let sums = format!(
            "{} bytes to {name}: splice {splice}, copy {copy}",
            total * factor
        );
        let totals = exit.stderr.last().unwrap();
        assert!(totals.contains(&sums), "{sums} is missing in {totals}");
    }
    assert_eq!(metrics.value("connections_total"), lens.len() as u64);
    let finished = metrics.value("connections_ended_total{end=\"finished\"}");
    assert_eq!(finished, lens.len() as u64);
    assert_eq!(metrics.value("pipes_in_use"), 0);
}

#[test]
fn the_metrics_show_connections_and_pipes_while_they_are_in_use() {
    let target = Target::start();
    let relay = relay(&[target.address], &["--metrics", "127.0.0.1:0"]);
    let mut client = connect(relay.address());
    let mut server = target.accept();
    let bytes = test_bytes(64 << 20);
    thread::scope(|scope| {
        scope.spawn(|| {
            server.write_all(&bytes).unwrap();
            server.shutdown(Shutdown::Write).unwrap();
        });
        // Nobody reads, so the sockets fill up, and then the pipe.
        let began = std::time::Instant::now();
        loop {
            let metrics = metrics(&relay);
            assert_eq!(metrics.value("connections_open"), 1);
            if metrics.value("pipes_in_use") == 1 {
                break;
            }
            assert!(began.elapsed() < TEST_TIMEOUT, "no pipe is in use");
        }
        let mut first = [0; 1];
        client.read_exact(&mut first).unwrap();
        assert!(read_to_end(&mut client) == bytes[1..]);
    });
}
