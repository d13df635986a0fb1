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

/// Sends until the socket accepts no more. Each send has the pattern whose seed is the index of the
/// send.
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

/// Waits until another thread's work makes `is_met` return true. `condition` describes the expected
/// state, for the panic message.
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

/// The longest time that a test waits for another thread.
const CONDITION_TIMEOUT: Duration = Duration::from_secs(20);

/// Held by each test, so that only one runs at a time: the tests observe the reaper, and the
/// process has only one.
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
    // No thread has polled the completions yet, so only the reaper can process the notifications.
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

    /// Returns the number of open descriptors of this process that refer to a ring.
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
            // Dropping a future that waits for a completion has no effect on the send.
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
        // Creating a ring drops the thread's handles to its retired rings.
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

    /// Counts the rings in a child process, in which no other test can create a ring.
    #[test]
    fn a_thousand_connections_share_one_ring() {
        let _guard = ONE_AT_A_TIME.lock();
        // Allocate the pages before the fork: if another thread holds the lock of the page pool
        // during the fork, the child's copy of the lock is never released.
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
                // The first send has created the ring. A ring has more than one descriptor, so
                // check only that further sends do not add to their number.
                let of_one_ring = ring_descriptors();
                connections[1..].iter().for_each(send);
                u8::try_from(ring_descriptors() - of_one_ring).expect("few")
            })
        });
        assert_eq!(rings, 0, "more than one ring");
    }

    /// Checks that the notification tasks are hardly ever woken, and that the thread uses hardly
    /// any CPU time, while the peers do not read.
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
            // Wait, because loopback may still be delivering bytes and delayed acknowledgements.
            tokio::time::sleep(Duration::from_millis(500)).await;

            let (wakeups, cpu) = (WAKEUPS.load(Ordering::Relaxed), cpu_time_of_thread());
            tokio::time::sleep(Duration::from_millis(300)).await;
            let wakeups = WAKEUPS.load(Ordering::Relaxed) - wakeups;
            let cpu = cpu_time_of_thread() - cpu;
            assert!(wakeups <= 1, "{wakeups} wakeups");
            // The kernel may charge its own work to the thread, such as window probes. A thread
            // that polls would use most of the 300 ms, even on a busy machine.
            assert!(cpu < Duration::from_millis(50), "{cpu:?} of CPU time");
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

    /// Like [`wait_until`], but without blocking the thread of the runtime.
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
