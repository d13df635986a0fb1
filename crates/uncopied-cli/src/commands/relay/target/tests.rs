#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use super::resolve::{Update, resolve_all, resolve_within, update};
use super::*;
use crate::commands::relay::proxy_protocol::{Header, Parsed, parse};
use crate::flags::{ProxyVersions, RelaySettings, SendProxy, TimeOrOff};

/// Protects against a test that hangs. No test depends on how long this is.
const LIMIT: Duration = Duration::from_secs(60);

fn config(targets: &[&str], balance: Balance) -> ListenerConfig {
    let targets = targets.iter().map(|target| target.parse().unwrap());
    let settings = RelaySettings {
        balance: Some(balance),
        health_interval: Some(TimeOrOff(Some(Duration::from_millis(5)))),
        fall: Some(2),
        rise: Some(2),
        ..RelaySettings::default()
    };
    ListenerConfig::new("5432".parse().unwrap(), targets.collect(), settings)
}

fn pool_of(config: &ListenerConfig) -> (Arc<Pool>, UnboundedReceiver<TargetEvent>) {
    let (events, received) = unbounded_channel();
    let mut pools = Pool::all(std::slice::from_ref(config), &[], &events);
    (pools.remove(0), received)
}

fn pool(targets: &[&str], balance: Balance) -> (Arc<Pool>, UnboundedReceiver<TargetEvent>) {
    pool_of(&config(targets, balance))
}

fn refused() -> io::Error {
    io::ErrorKind::ConnectionRefused.into()
}

fn bring_down(pool: &Pool, index: usize) {
    for _ in 0..2 {
        pool.record(&pool.targets[index], Err(&refused()));
    }
    assert_eq!(pool.targets[index].health(), Health::Down);
}

/// The ports of the targets that a connection tries.
fn ports_tried(pool: &Arc<Pool>, client: Option<IpAddr>) -> Vec<u16> {
    let attempts = pool.attempts(client);
    attempts
        .map(|attempt| match attempt.target().address() {
            TargetAddress::Ip(address) => address.port(),
            TargetAddress::Name { port, .. } => *port,
            TargetAddress::Unix(_) => 0,
        })
        .collect()
}

const FOUR: [&str; 4] = ["10.0.0.1:1", "10.0.0.1:2=3", "10.0.0.1:3", "unresolved:4"];

#[test]
fn a_connection_tries_each_target_with_an_address_once() {
    for balance in [
        Balance::RoundRobin,
        Balance::LeastConnections,
        Balance::SourceHash,
    ] {
        let (pool, _events) = pool(&FOUR, balance);
        for n in 0..50 {
            let client = IpAddr::from([192, 0, 2, n]);
            let mut ports = ports_tried(&pool, Some(client));
            if balance == Balance::SourceHash {
                assert_eq!(ports_tried(&pool, Some(client)), ports);
            }
            ports.sort_unstable();
            assert_eq!(ports, [1, 2, 3], "{balance:?}");
        }
    }
}

#[test]
fn targets_that_are_down_are_tried_last_and_even_if_all_are() {
    let (pool, _events) = pool(&FOUR, Balance::RoundRobin);
    bring_down(&pool, 1);
    for _ in 0..20 {
        assert_eq!(ports_tried(&pool, None)[2], 2);
    }
    bring_down(&pool, 0);
    for _ in 0..20 {
        let ports = ports_tried(&pool, None);
        assert_eq!(ports[0], 3);
        assert_eq!(ports[1..].iter().sum::<u16>(), 3);
    }
    bring_down(&pool, 2);
    assert_eq!(ports_tried(&pool, None).len(), 3);
}

#[test]
fn an_attempt_sees_what_was_learned_from_the_one_before() {
    let (pool, _events) = pool(&FOUR[..3], Balance::RoundRobin);
    let mut attempts = pool.attempts(None);
    let first = attempts.next().unwrap();
    assert_eq!(first.target().address().to_string(), "10.0.0.1:2");
    first.failed(&refused());
    assert_eq!(pool.targets[1].failed(), 1);
    bring_down(&pool, 0);
    let second = attempts.next().unwrap();
    assert_eq!(second.target().address().to_string(), "10.0.0.1:3");
}

#[test]
fn without_checks_no_target_is_down() {
    let mut config = config(&FOUR[..2], Balance::RoundRobin);
    config.health = None;
    let (pool, mut events) = pool_of(&config);
    for _ in 0..10 {
        for attempt in pool.attempts(None) {
            attempt.failed(&refused());
        }
    }
    assert_eq!(pool.targets[0].health(), Health::Unknown);
    assert_eq!(pool.targets[0].failed(), 10);
    let first: Vec<_> = (0..8).map(|_| ports_tried(&pool, None)[0]).collect();
    assert!(first.contains(&1) && first.contains(&2), "{first:?}");
    assert!(events.try_recv().is_err());
}

#[test]
fn connections_are_counted_until_they_end() {
    let (pool, _events) = pool(&["10.0.0.1:1", "10.0.0.1:2"], Balance::LeastConnections);
    let open: Vec<_> = (0..10)
        .map(|_| pool.attempts(None).next().unwrap().connected())
        .collect();
    let counts = || [0, 1].map(|index| pool.targets[index].connections());
    assert_eq!(counts(), [5, 5]);
    // Attempts in progress count as well, so that others see them.
    let attempt = pool.attempts(None).next().unwrap();
    assert_eq!(counts().iter().sum::<usize>(), 11);
    drop(attempt);
    let of_first = |connection: &Connection| Arc::ptr_eq(connection.target(), &pool.targets[0]);
    let (first, second): (Vec<_>, Vec<_>) = open.into_iter().partition(of_first);
    drop(first);
    assert_eq!(counts(), [0, 5]);
    let next: Vec<_> = (0..5)
        .map(|_| pool.attempts(None).next().unwrap().connected())
        .collect();
    assert_eq!(counts(), [5, 5]);
    drop((next, second));
    assert_eq!(counts(), [0, 0]);
    assert_eq!([0, 1].map(|index| pool.targets[index].connected()), [10, 5]);
}

#[test]
fn connections_of_many_threads_are_balanced_exactly() {
    let (pool, _events) = pool(&["10.0.0.1:1", "10.0.0.1:2=3"], Balance::LeastConnections);
    let open: Vec<_> = std::thread::scope(|scope| {
        let connect = || {
            let connection = |_| pool.attempts(None).next().unwrap().connected();
            (0..100).map(connection).collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(connect)).collect();
        let joined = threads.into_iter().map(|thread| thread.join().unwrap());
        joined.flatten().collect()
    });
    let counts = [0, 1].map(|index| pool.targets[index].connections());
    assert_eq!(counts, [100, 300]);
    drop(open);
    let counts = [0, 1].map(|index| pool.targets[index].connections());
    assert_eq!(counts, [0, 0]);
}

#[test]
fn failures_of_this_machine_say_nothing_about_a_target() {
    let (pool, mut events) = pool(&FOUR[..2], Balance::RoundRobin);
    let target = &pool.targets[0];
    for errno in [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::ADDRNOTAVAIL,
    ] {
        for _ in 0..5 {
            pool.record(target, Err(&errno.into()));
        }
        assert_eq!(target.health(), Health::Unknown, "{errno}");
    }
    for errno in [
        Errno::CONNREFUSED,
        Errno::HOSTUNREACH,
        Errno::TIMEDOUT,
        Errno::ACCESS,
        Errno::AGAIN,
    ] {
        for _ in 0..2 {
            pool.record(target, Ok(()));
        }
        for _ in 0..2 {
            pool.record(target, Err(&errno.into()));
        }
        assert_eq!(target.health(), Health::Down, "{errno}");
        let told = std::iter::from_fn(|| events.try_recv().ok());
        let last = told.last().unwrap().to_string();
        assert!(last.contains(" is down: "), "{last}");
    }
}

#[tokio::test]
async fn targets_that_stay_keep_their_state_over_a_reload() {
    let (events, _received) = unbounded_channel();
    let old_config = config(&["10.0.0.1:1", "10.0.0.1:2", "db:3"], Balance::RoundRobin);
    let old = Pool::all(&[old_config], &[], &events);
    bring_down(&old[0], 0);
    let addresses = vec![ConnectAddress::Tcp("192.0.2.1:3".parse().unwrap())];
    assert!(old[0].targets[2].set_addresses(addresses.clone()));
    let mut open: Vec<_> = (0..4)
        .map(|_| old[0].attempts(None).next().unwrap().connected())
        .collect();
    let of_second = open
        .iter()
        .position(|connection| Arc::ptr_eq(connection.target(), &old[0].targets[1]));
    let of_second = open.remove(of_second.unwrap());

    // The second target goes, others come, the weight and the rule change, and so does the order.
    let targets = ["10.0.0.1:4", "db:3=2", "10.0.0.1:1=5"];
    let mut other = config(&["10.0.0.1:1"], Balance::RoundRobin);
    other.listen = "5433".parse().unwrap();
    let new_config = [other, config(&targets, Balance::LeastConnections)];
    let new = Pool::all(&new_config, &old, &events);
    // A listener with another address shares no state.
    assert_eq!(*new[0].listen(), new_config[0].listen);
    assert_eq!(new[0].targets[0].health(), Health::Unknown);
    let [added, named, down] = &new[1].targets[..] else {
        panic!("{new:?}");
    };
    assert_eq!(down.health(), Health::Down);
    assert_eq!(named.addresses()[..], addresses[..]);
    assert!(Arc::ptr_eq(named, &old[0].targets[2]));
    assert_eq!((added.connections(), added.health()), (0, Health::Unknown));
    let before = named.connections();
    assert!(before > 0);

    // Connections from before the reload count for the target that stays, until they end. One of
    // the target that was removed goes on.
    drop(old);
    assert_eq!(of_second.target().connections(), 2);
    drop(open);
    assert_eq!(named.connections(), 0);
    assert_eq!(of_second.target().connections(), 1);
    assert_eq!(Arc::strong_count(of_second.target()), 1);

    // Without checks, health does not count. It is forgotten once the new pools are in use, and not
    // before, because a reload can still fail.
    let mut unchecked = config(&targets, Balance::RoundRobin);
    unchecked.health = None;
    let unchecked = Pool::all(&[unchecked], &new, &events);
    let down = &unchecked[0].targets[2];
    assert!(unchecked[0].is_usable(down));
    assert_eq!(down.health(), Health::Down);
    let _upkeep = Upkeep::start(&unchecked);
    assert_eq!(down.health(), Health::Unknown);
}

fn tcp(addresses: &[&str]) -> Vec<ConnectAddress> {
    let parse = |address: &&str| ConnectAddress::Tcp(address.parse().unwrap());
    addresses.iter().map(parse).collect()
}

#[test]
fn connections_are_spread_over_the_addresses_of_a_name() {
    let addresses = tcp(&["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"]);
    for (balance, expected_starts) in [(Balance::RoundRobin, 3), (Balance::SourceHash, 1)] {
        let (pool, _events) = pool(&["db:1"], balance);
        pool.targets[0].set_addresses(addresses.clone());
        let mut starts = BTreeSet::new();
        for _ in 0..9 {
            let client = IpAddr::from([192, 0, 2, 9]);
            let attempt = pool.attempts(Some(client)).next().unwrap();
            let mut tried = attempt.addresses().to_vec();
            starts.insert(tried[0].clone());
            tried.sort();
            assert_eq!(tried, addresses);
        }
        assert_eq!(starts.len(), expected_starts, "{balance:?}");
    }
}

#[test]
fn a_failed_look_up_keeps_the_old_addresses() {
    let (pool, _events) = pool(&["db:1"], Balance::RoundRobin);
    let target = &pool.targets[0];
    let first = tcp(&["192.0.2.1:1"]);
    assert_eq!(update(target, Ok(first.clone())), Update::New);
    assert_eq!(update(target, Ok(first.clone())), Update::Same);
    let failed = update(target, Err(io::ErrorKind::TimedOut.into()));
    assert_eq!(failed, Update::Failed("timed out".to_owned()));
    assert_eq!(target.addresses()[..], first[..]);
    let second = tcp(&["192.0.2.1:1", "192.0.2.2:1"]);
    assert_eq!(update(target, Ok(second.clone())), Update::New);
    assert_eq!(target.addresses()[..], second[..]);
}

#[tokio::test]
async fn names_are_resolved_at_the_start() {
    let mut config = config(&["localhost:1", "127.0.0.1:2"], Balance::RoundRobin);
    config.resolve_interval = None;
    let (pool, mut events) = pool_of(&config);
    assert_eq!(ports_tried(&pool, None), [2]);
    resolve_all(std::slice::from_ref(&pool), LIMIT).await;
    let addresses = pool.targets[0].addresses();
    let is_loopback = |address: &ConnectAddress| match address {
        ConnectAddress::Tcp(address) => address.ip().is_loopback() && address.port() == 1,
        ConnectAddress::Unix(_) => false,
    };
    assert!(
        !addresses.is_empty() && addresses.iter().all(is_loopback),
        "{addresses:?}"
    );
    assert!(events.try_recv().is_err());
}

#[tokio::test]
async fn a_look_up_that_takes_too_long_is_told() {
    let (pool, mut events) = pool(&["localhost:1"], Balance::RoundRobin);
    let never = std::future::pending();
    resolve_within(&pool, &pool.targets[0], never, Duration::from_millis(1)).await;
    let event = events.try_recv().unwrap().to_string();
    assert_eq!(
        event,
        "cannot resolve target localhost:1 of 127.0.0.1:5432: timed out; it is not used until its \
         name resolves"
    );
    // It is resolved later.
    let _upkeep = Upkeep::start(std::slice::from_ref(&pool));
    let event = timeout(LIMIT, events.recv()).await.unwrap().unwrap();
    let text = event.to_string();
    assert!(
        text.contains("localhost:1 of 127.0.0.1:5432 has the addresses "),
        "{text}"
    );
    assert_eq!(ports_tried(&pool, None), [1]);
}

#[tokio::test]
async fn checks_find_that_a_target_goes_and_comes_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let target = address.to_string();
    let (pool, mut events) = pool(&[&target, "127.0.0.1:1"], Balance::RoundRobin);
    let _upkeep = Upkeep::start(std::slice::from_ref(&pool));
    let mut next = async || {
        let event = timeout(LIMIT, events.recv()).await.unwrap().unwrap();
        event.to_string()
    };
    // Nothing listens on port 1.
    let refused = "is down: connection refused; ";
    let down = next().await;
    assert_eq!(
        down,
        format!("target 127.0.0.1:1 of 127.0.0.1:5432 {refused}1 of 2 are up")
    );
    let _ = timeout(LIMIT, listener.accept()).await.unwrap();
    drop(listener);
    let down = next().await;
    assert_eq!(
        down,
        format!(
            "target {target} of 127.0.0.1:5432 {refused}all are down, and are tried all the same"
        )
    );
    assert!(pool.targets[0].failed_checks() >= 2);
    let _listener = TcpListener::bind(address).await.unwrap();
    let up = next().await;
    assert_eq!(
        up,
        format!("target {target} of 127.0.0.1:5432 is up; 1 of 2 are up")
    );
    assert_eq!(pool.targets[0].failed(), 0);
}

#[tokio::test]
async fn a_check_sends_a_header_that_names_no_client() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("target");
    let listener = UnixListener::bind(&path).unwrap();
    for (send, header) in [
        (SendProxy::V1, Header::Unspecified),
        (SendProxy::V2, Header::Local),
    ] {
        let target = format!("unix:{}", path.display());
        let mut config = config(&[&target], Balance::RoundRobin);
        config.send_proxy = send.version();
        let (pool, _events) = pool_of(&config);
        let _upkeep = Upkeep::start(std::slice::from_ref(&pool));
        let (mut stream, _) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
        let mut bytes = Vec::new();
        let read = timeout(LIMIT, stream.read_to_end(&mut bytes)).await;
        read.unwrap().unwrap();
        let len = bytes.len();
        let parsed = parse(&bytes, ProxyVersions::Any);
        assert_eq!(parsed, Ok(Parsed::Complete { header, len }), "{send:?}");
    }
}

#[test]
fn events_are_sentences() {
    let (pool, mut events) = pool(&["db:1"], Balance::RoundRobin);
    let target = &pool.targets[0];
    let addresses: Arc<[_]> = tcp(&["192.0.2.1:1", "[::1]:1"]).into();
    let mut text = |state| {
        pool.tell(target, state);
        events.try_recv().unwrap().to_string()
    };
    assert_eq!(
        text(TargetState::Down("timed out".to_owned())),
        "target db:1 of 127.0.0.1:5432 is down: timed out"
    );
    assert_eq!(
        text(TargetState::Unresolved(
            "no".to_owned(),
            Arc::clone(&addresses)
        )),
        "cannot resolve target db:1 of 127.0.0.1:5432: no; its last addresses stay in use: \
         192.0.2.1:1, [::1]:1"
    );
    assert_eq!(
        text(TargetState::Resolved(addresses)),
        "target db:1 of 127.0.0.1:5432 has the addresses 192.0.2.1:1, [::1]:1"
    );
}
