//! Draining, reloads, signals, and handing sockets to the next process.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use super::peers::{Target, echo, named};
use super::{assert_reset, relay};
use crate::client::{connect, free_address, read_to_end};
use crate::server::{Server, program};
use crate::start::socket_activated;

/// Sends one byte and receives it again.
fn ping(stream: &mut TcpStream) {
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

#[test]
fn open_connections_finish_after_the_signal_to_stop() {
    let mut relay = relay(&[echo()], &[]);
    let address = relay.address();
    let mut open = connect(address);
    ping(&mut open);
    relay.signal(Signal::TERM);
    relay.wait_for_line("open connections have up to 30 s to finish: 1");
    // The listener is closed once both workers have stopped accepting.
    while let Ok(refused) = TcpStream::connect(address) {
        drop(refused);
    }
    ping(&mut open);
    drop(open);
    let exit = relay.wait();
    assert!(exit.status.success());
}

#[test]
fn connections_are_cut_at_the_end_of_the_grace_period_or_by_a_second_signal() {
    for grace in ["200ms", "1h"] {
        let target = Target::start();
        let mut relay = relay(
            &[target.address],
            &["--grace", grace, "--access-log", "text"],
        );
        relay.collect_stdout();
        let mut client = connect(relay.address());
        let mut server = target.accept();
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
        relay.signal(Signal::TERM);
        relay.wait_for_line("open connections have up to");
        if grace == "1h" {
            relay.signal(Signal::INT);
        }
        assert_reset(&client, b"");
        assert_reset(&server, b"");
        let exit = relay.wait();
        assert!(exit.status.success());
        assert!(exit.stdout.contains("end=stopped"), "{}", exit.stdout);
    }
}

/// A relay with a configuration file.
struct Configured {
    relay: Server,
    directory: tempfile::TempDir,
}

impl Configured {
    fn start(text: &str, listeners: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("relay.toml");
        fs::write(&file, text).unwrap();
        let mut command = program();
        command.arg("relay").arg("--config").arg(&file);
        // Each worker takes over new listeners by itself. With one, a connection to a new listener
        // shows that all have been taken over.
        command.args(["--threads", "1"]);
        let relay = Server::spawn(command, listeners);
        Self { relay, directory }
    }

    fn reload(&mut self, text: &str, message: &str) -> String {
        fs::write(self.directory.path().join("relay.toml"), text).unwrap();
        self.relay.signal(Signal::HUP);
        self.relay.wait_for_line(message)
    }
}

fn listener(listen: SocketAddr, target: SocketAddr) -> String {
    format!("[[listener]]\nlisten = \"{listen}\"\ntargets = [\"{target}\"]\n")
}

/// Connects as soon as there is a listener, and returns what it sends.
fn read_from(address: SocketAddr) -> Vec<u8> {
    read_to_end(&mut connect(address))
}

#[test]
fn a_reload_replaces_targets_and_listeners_and_keeps_connections() {
    let [first, second] = [free_address(), free_address()];
    let old = echo();
    let mut relay = Configured::start(&listener(first, old), 1);
    let mut open = connect(first);
    ping(&mut open);
    let both = listener(first, named("new")) + &listener(second, named("other"));
    relay.reload(&both, "configuration reloaded");
    assert_eq!(read_from(second), b"other");
    assert_eq!(read_from(first), b"new");
    ping(&mut open);
    relay.reload(&listener(second, named("last")), "configuration reloaded");
    while TcpStream::connect(first).is_ok() {}
    assert_eq!(read_from(second), b"last");
    ping(&mut open);
}

#[test]
fn a_bad_configuration_changes_nothing() {
    let (address, taken) = (free_address(), TcpListener::bind("127.0.0.1:0").unwrap());
    let good = listener(address, named("good"));
    let mut relay = Configured::start(&good, 1);
    let bad = "[[listener]]\nlisten = \"127.0.0.1:1\"\ntarget = []\n";
    let message = relay.reload(bad, "the configuration was not reloaded");
    assert!(message.contains("relay.toml"), "{message}");
    let in_use = listener(taken.local_addr().unwrap(), named("bad"));
    let message = relay.reload(&in_use, "the configuration was not reloaded");
    assert!(message.contains("in use"), "{message}");
    assert_eq!(read_from(address), b"good");
    relay.reload(&good, "configuration reloaded");
}

#[test]
fn sigusr1_prints_the_totals() {
    let mut relay = relay(&[echo()], &[]);
    let mut open = connect(relay.address());
    ping(&mut open);
    let expected = "1 connection; 1 byte to targets: splice 0, copy 1; \
                    1 byte to clients: splice 0, copy 1";
    // Bytes are counted right after they were sent.
    let mut line = String::new();
    while !line.ends_with(expected) {
        relay.signal(Signal::USR1);
        line = relay.wait_for_line("1 connection; ");
    }
}

#[test]
fn passed_sockets_must_be_those_of_listeners() {
    let passed = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = socket_activated(vec![passed.into()], "$$");
    command.args(["relay", "127.0.0.1:0", "127.0.0.1:1"]);
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("no listener has the address"), "{stderr}");
}

/// Connects again and again until told to stop. Returns how many connections succeeded.
fn connect_until(stop: &AtomicBool, address: SocketAddr) -> u64 {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        ping(&mut connect(address));
        count += 1;
    }
    count
}

/// Tells the clients to stop when dropped, also if the test fails.
struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_socket_passes_to_the_next_process_without_a_lost_connection() {
    let listening = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listening.local_addr().unwrap();
    let target = echo();
    let start = || {
        let passed: OwnedFd = listening.try_clone().unwrap().into();
        let mut command = socket_activated(vec![passed], "$$");
        command.args(["relay", &address.to_string(), &target.to_string()]);
        Server::spawn(command, 1)
    };
    let mut current = start();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stopping = StopWhenDropped(&stop);
        let clients: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| connect_until(&stop, address)))
            .collect();
        for _ in 0..3 {
            let mut open = connect(address);
            ping(&mut open);
            let next = start();
            let previous = std::mem::replace(&mut current, next);
            previous.signal(Signal::TERM);
            ping(&mut open);
            drop(open);
            let exit = previous.wait();
            assert!(exit.status.success(), "{:?}", exit.stderr);
        }
        drop(stopping);
        // Every exchange has succeeded, or this panics.
        let counts: Vec<_> = clients.into_iter().map(|c| c.join().unwrap()).collect();
        assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
    });
}

#[test]
fn another_process_takes_over_with_reuse_port() {
    let address = free_address();
    let start = |name: &'static str| {
        let mut command = program();
        command.args(["relay", &address.to_string(), &named(name).to_string()]);
        command.arg("--reuse-port");
        Server::spawn(command, 1)
    };
    let target = Target::start();
    let mut command = program();
    command.args(["relay", &address.to_string(), &target.address.to_string()]);
    command.arg("--reuse-port");
    let mut old = Server::spawn(command, 1);
    let mut client = connect(address);
    let mut server = target.accept();
    let new = start("new");
    assert_eq!(listening_sockets(address), 2);
    old.signal(Signal::TERM);
    old.wait_for_line("open connections have up to");
    // Once the old process has closed its socket, all connections reach the new one.
    while listening_sockets(address) > 1 {
        thread::sleep(Duration::from_millis(5));
    }
    for _ in 0..20 {
        assert_eq!(read_from(address), b"new");
    }
    client.write_all(b"still here").unwrap();
    drop(client);
    assert_eq!(read_to_end(&mut server), b"still here");
    drop(server);
    assert!(old.wait().status.success());
    assert!(new.stop().status.success());
}

/// Returns the number of sockets that listen on an address of IPv4.
fn listening_sockets(address: SocketAddr) -> usize {
    const LISTEN: &str = "0A";
    let port = format!(":{:04X}", address.port());
    let sockets = fs::read_to_string("/proc/net/tcp").unwrap();
    let is_listening = |line: &&str| {
        let mut columns = line.split_whitespace().skip(1);
        let local = columns.next().unwrap();
        local.ends_with(&port) && columns.nth(1) == Some(LISTEN)
    };
    sockets.lines().skip(1).filter(is_listening).count()
}
