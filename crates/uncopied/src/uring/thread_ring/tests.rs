//! Tests of rings whose thread or runtime ends, and of idle rings.

use std::os::fd::AsFd;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::super::testing::{
    AcceptedSend, TestLedger, connect, pattern, receive_and_check, wait_for_all,
};
use super::*;
use crate::arena::Pages;

/// Sends the pattern of each send's index until the socket accepts no more.
fn fill(ledger: &TestLedger, sink: impl AsFd) -> Vec<AcceptedSend> {
    fill_with(ledger, sink, |index| pattern(index, 32 << 10))
}

fn fill_with(
    ledger: &TestLedger,
    sink: impl AsFd,
    mut pages: impl FnMut(u64) -> Pages,
) -> Vec<AcceptedSend> {
    let mut accepted = Vec::new();
    loop {
        let ring = ThreadRing::of_thread().expect("a ring");
        let lease = ledger.lease(&pages(accepted.len() as u64));
        let (part, completion) = ledger.part(ring.notification_source());
        match ring.send(sink.as_fd(), lease, part) {
            Ok(bytes) => accepted.push((bytes, completion)),
            Err(Errno::AGAIN) => return accepted,
            Err(errno) => panic!("{errno}"),
        }
    }
}

/// Waits until another thread has made `condition` true.
fn wait_until(condition: &str, mut is_met: impl FnMut() -> bool) {
    let started_at = Instant::now();
    while !is_met() {
        assert!(
            started_at.elapsed() < CONDITION_TIMEOUT,
            "never: {condition}"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

fn has_reaper() -> bool {
    let threads = std::fs::read_dir("/proc/self/task").expect("readable");
    threads.flatten().any(|thread| {
        let name = std::fs::read_to_string(thread.path().join("comm"));
        name.is_ok_and(|name| name.trim() == reaper::REAPER_THREAD_NAME)
    })
}

/// How long a test waits for another thread.
const CONDITION_TIMEOUT: Duration = Duration::from_secs(20);

/// Held by each test, because the process has one reaper, which these tests observe.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn a_thread_has_one_ring_and_hands_it_to_the_reaper_when_it_ends() {
    let _guard = ONE_AT_A_TIME.lock();
    let ledger = TestLedger::new();
    let (sender, receiver) = connect(1 << 20, 4 << 10);
    let (accepted, ring) = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let ring = ThreadRing::of_thread().expect("a ring");
            let accepted = fill(&ledger, &sender);
            assert!(Arc::ptr_eq(
                &ring,
                &ThreadRing::of_thread().expect("a ring")
            ));
            (accepted, Arc::downgrade(&ring.ring))
        });
        sending.join().expect("no panic")
    });
    wait_until("the reaper starts", has_reaper);
    assert!(ledger.quota.in_flight_bytes() > 0);
    receive_and_check(&receiver, &accepted);
    // No thread uses the completions: only the reaper processes the notifications.
    wait_until("all memory is free", || ledger.quota.in_flight_bytes() == 0);
    assert!(accepted.iter().all(|(bytes, completion)| {
        completion
            .outcome()
            .is_some_and(|outcome| outcome.bytes == *bytes as u64)
    }));
    drop(accepted);
    wait_until("the ring is closed", || ring.strong_count() == 0);
    wait_until("the reaper ends", || !has_reaper());
}

#[test]
fn a_completion_can_be_waited_for_after_its_thread_has_ended() {
    let _guard = ONE_AT_A_TIME.lock();
    let ledger = TestLedger::new();
    let (sender, receiver) = connect(1 << 20, 4 << 10);
    let accepted = thread::scope(|scope| {
        let sending = scope.spawn(|| fill(&ledger, &sender));
        sending.join().expect("no panic")
    });
    let receiving = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        let mut receiver = receiver;
        std::io::copy(&mut receiver, &mut std::io::sink()).expect("received")
    });
    wait_for_all(&accepted);
    assert_eq!(ledger.quota.in_flight_bytes(), 0);
    drop(sender);
    receiving.join().expect("no panic");
}

#[test]
fn a_reset_frees_the_memory_of_a_ring_that_the_reaper_has() {
    let _guard = ONE_AT_A_TIME.lock();
    let ledger = TestLedger::new();
    let (sender, receiver) = connect(1 << 20, 4 << 10);
    thread::scope(|scope| {
        let sending = scope.spawn(|| drop(fill(&ledger, &sender)));
        sending.join().expect("no panic");
    });
    assert!(ledger.quota.in_flight_bytes() > 0);
    drop(receiver);
    wait_until("all memory is free", || ledger.quota.in_flight_bytes() == 0);
}

#[cfg(feature = "tokio")]
mod on_tokio {
    use std::net::TcpStream;
    use std::sync::atomic::Ordering;

    use tokio::runtime::{Builder, Runtime};

    use super::super::owner_runtime::WAKEUPS;
    use super::*;
    use crate::sys::fork::tests::in_child;

    fn runtime() -> Runtime {
        Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
    }

    /// How many descriptors of rings this process has open.
    fn ring_descriptors() -> usize {
        let open = std::fs::read_dir("/proc/self/fd").expect("readable");
        let is_ring = |link: std::path::PathBuf| link.as_os_str() == "anon_inode:[io_uring]";
        open.flatten()
            .filter(|it| std::fs::read_link(it.path()).is_ok_and(is_ring))
            .count()
    }

    #[test]
    fn a_notification_wakes_the_task_that_awaits_a_completion() {
        let _guard = ONE_AT_A_TIME.lock();
        let ledger = TestLedger::new();
        runtime().block_on(async {
            let (sender, receiver) = connect(1 << 20, 4 << 10);
            let accepted = fill(&ledger, &sender);
            let (_, last) = accepted.last().expect("at least one").clone();
            let waiting = tokio::spawn(last);
            // A future that is dropped while it waits changes nothing.
            let (_, first) = accepted.first().expect("at least one").clone();
            let dropped = tokio::time::timeout(Duration::from_millis(5), first).await;
            assert!(dropped.is_err());
            tokio::task::spawn_blocking(move || {
                receive_and_check(&receiver, &accepted);
                accepted
            })
            .await
            .expect("no panic");
            let woken = tokio::time::timeout(Duration::from_secs(20), waiting).await;
            let outcome = woken.expect("woken").expect("no panic");
            assert_eq!(outcome.reason, crate::FreeReason::Notification);
        });
        assert_eq!(ledger.quota.in_flight_bytes(), 0);
    }

    #[test]
    fn each_runtime_has_a_ring_of_its_own() {
        let _guard = ONE_AT_A_TIME.lock();
        let ring_of = |runtime: &Runtime| {
            let ring = runtime.block_on(async { ThreadRing::of_thread().expect("a ring") });
            Arc::clone(&ring.ring)
        };
        let (first, second) = (runtime(), runtime());
        let (one, other) = (ring_of(&first), ring_of(&second));
        assert!(!Arc::ptr_eq(&one, &other));
        assert!(Arc::ptr_eq(&one, &ring_of(&first)));
        drop(first);
        assert!(one.is_retired() && !other.is_retired());
        // Creating the next ring drops those that are retired.
        let third = runtime();
        ring_of(&third);
        assert_eq!(Arc::strong_count(&one), 1);
        assert!(Arc::ptr_eq(&other, &ring_of(&second)));
    }

    #[test]
    fn a_runtime_that_shuts_down_hands_its_rings_to_the_reaper() {
        let _guard = ONE_AT_A_TIME.lock();
        let ledger = TestLedger::new();
        let (sender, receiver) = connect(1 << 20, 4 << 10);
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let (first, waiting) = runtime.block_on(async {
            let accepted = fill(&ledger, &sender);
            let (_, last) = accepted.last().expect("at least one").clone();
            (accepted, tokio::spawn(last))
        });
        assert!(ledger.quota.in_flight_bytes() > 0);
        drop(runtime);
        assert!(waiting.is_finished());
        assert!(ledger.quota.in_flight_bytes() > 0);
        receive_and_check(&receiver, &first);
        wait_until("all memory is free", || ledger.quota.in_flight_bytes() == 0);
        wait_for_all(&first);
    }

    /// The rings are counted in a child process, in which no other test opens any.
    #[test]
    fn a_thousand_connections_share_one_ring() {
        let _guard = ONE_AT_A_TIME.lock();
        // Allocated before the fork: another thread may hold the lock of the pool during it.
        let pages = pattern(0, 32 << 10);
        let rings = in_child(|| {
            let ledger = TestLedger::new();
            runtime().block_on(async {
                let connections: Vec<_> = (0..1000).map(|_| connect(32 << 10, 4 << 10)).collect();
                let send = |(sender, _): &(TcpStream, TcpStream)| {
                    let accepted = fill_with(&ledger, sender, |_| pages.clone());
                    assert!(!accepted.is_empty());
                };
                send(&connections[0]);
                // One ring has a few descriptors.
                let of_one_ring = ring_descriptors();
                connections[1..].iter().for_each(send);
                u8::try_from(ring_descriptors() - of_one_ring).expect("few")
            })
        });
        assert_eq!(rings, 0, "more rings than one");
    }

    /// Measures the wake-ups of notification tasks, and the CPU time, while the peer does not read.
    #[test]
    fn sends_in_flight_cost_nothing_while_no_notification_arrives() {
        let _guard = ONE_AT_A_TIME.lock();
        let ledger = TestLedger::new();
        runtime().block_on(async {
            let connections: Vec<_> = (0..1000).map(|_| connect(32 << 10, 4 << 10)).collect();
            let accepted: Vec<_> = connections
                .iter()
                .map(|(sender, _)| fill(&ledger, sender))
                .collect();
            let ring = ThreadRing::of_thread().expect("a ring");
            assert!(
                ring.ring.in_flight() >= 1000,
                "{} in flight",
                ring.ring.in_flight()
            );
            // Loopback may still deliver bytes and delayed acknowledgements.
            tokio::time::sleep(Duration::from_millis(500)).await;

            let (wakeups, cpu) = (WAKEUPS.load(Ordering::Relaxed), cpu_time_of_thread());
            tokio::time::sleep(Duration::from_millis(300)).await;
            let wakeups = WAKEUPS.load(Ordering::Relaxed) - wakeups;
            let cpu = cpu_time_of_thread() - cpu;
            assert!(wakeups <= 1, "{wakeups} wakeups");
            assert!(cpu < Duration::from_millis(10), "{cpu:?} of CPU time");
            assert!(ring.ring.in_flight() >= 1000);

            tokio::task::spawn_blocking(move || {
                for ((_, receiver), accepted) in connections.iter().zip(&accepted) {
                    receive_and_check(receiver, accepted);
                }
                (connections, accepted)
            })
            .await
            .expect("no panic");
            wait_until_async("all memory is free", || ledger.quota.in_flight_bytes() == 0).await;
        });
    }

    fn cpu_time_of_thread() -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::try_from(time).expect("not negative")
    }

    /// Like [`wait_until`], without blocking the runtime.
    async fn wait_until_async(condition: &str, mut is_met: impl FnMut() -> bool) {
        let started_at = Instant::now();
        while !is_met() {
            assert!(
                started_at.elapsed() < CONDITION_TIMEOUT,
                "never: {condition}"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
