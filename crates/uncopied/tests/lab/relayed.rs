//! Relaying in one guest between a client and a server in the other.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use uncopied::Mechanism;
use uncopied::relay::copy_bidirectional;

use crate::harness::pattern;
use crate::relay_chaos::{Random, exchange};
use crate::sides::two_sides_with_control;

/// How long random streams are relayed.
const CHAOS: Duration = Duration::from_secs(5);

#[test]
fn bulk_data_is_spliced() {
    const BYTES: usize = 16 << 20;
    two_sides_with_control(
        |client, mut server| {
            let sender = thread::spawn(move || {
                (&client).write_all(&pattern(BYTES)).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                client
            });
            let mut received = Vec::new();
            server.read_to_end(&mut received).unwrap();
            assert!(received == pattern(BYTES));
            drop(server);
            sender.join().unwrap();
        },
        |a, b| {
            let report = copy_bidirectional(&a, &b).unwrap().a_to_b;
            assert_eq!(report.bytes(), BYTES as u64);
            let percent = report.by(Mechanism::Splice) * 100 / report.bytes();
            assert!(percent >= 90, "{report}");
        },
    );
}

/// The first byte of a round says whether another one follows.
#[test]
fn chaos_changes_no_byte() {
    let began = Instant::now();
    let mut random = Random(0);
    loop {
        let goes_on = Cell::new(began.elapsed() < CHAOS);
        two_sides_with_control(
            |mut client, server| {
                client.write_all(&[goes_on.get().into()]).unwrap();
                let random = Random(random.below(u64::MAX));
                exchange(&client, &server, random, &AtomicBool::new(false));
            },
            |a: TcpStream, b| {
                let mut first = [0];
                (&a).read_exact(&mut first).unwrap();
                goes_on.set(first == [1]);
                // Some of the connections are reset.
                let _ = copy_bidirectional(&a, &b);
            },
        );
        if !goes_on.get() {
            return;
        }
    }
}
