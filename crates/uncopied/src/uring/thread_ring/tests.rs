//! Rings whose thread or runtime comes and goes, and rings at rest.

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::*;
use crate::arena::Pages;
use crate::in_flight::Completion;

use super::super::ring::tests::{TestLedger, check, pattern, wait_all, wire};

/// Sends until the socket takes no more, and for each send how much it took.
fn fill(ledger: &TestLedger, sink: impl AsFd) -> Vec<(usize, Completion)> {
    fill_with(ledger, sink, |mark| pattern(mark, 32 << 10))
}

fn fill_with(
    ledger: &TestLedger,
    sink: impl AsFd,
    mut next: impl FnMut(u64) -> Pages,
) -> Vec<(usize, Completion)> {
    let mut taken = Vec::new();
    loop {
        let ring = ThreadRing::of_thread().expect("a ring");
        let lease = ledger.lease(&next(taken.len() as u64));
        let (part, completion) = ledger.part(ring.notification_source());
        match ring.send(sink.as_fd(), lease, part) {
            Ok(bytes) => taken.push((bytes, completion)),
            Err(Errno::AGAIN) => return taken,
            Err(errno) => panic!("{errno}"),
        }
    }
}

/// Waits for what another thread does on its own.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn has_reaper() -> bool {
    let threads = std::fs::read_dir("/proc/self/task").expect("listed");
    threads.flatten().any(|thread| {
        let name = std::fs::read_to_string(thread.path().join("comm"));
        name.is_ok_and(|name| name.trim() == "uncopied-reaper")
    })
}

/// There is one reaper in the process, and these tests look for it.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn a_thread_has_one_ring_and_leaves_it_to_the_reaper() {
    let _alone = ONE_AT_A_TIME.lock();
    let ledger = TestLedger::new();
    let (sender, receiver) = wire(1 << 20, 4 << 10);
    let (taken, ring) = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let ring = ThreadRing::of_thread().expect("a ring");
            let taken = fill(&ledger, &sender);
            assert!(Arc::ptr_eq(
                &ring,
                &ThreadRing::of_thread().expect("a ring")
            ));
            (taken, Arc::downgrade(&ring.ring))
        });
        sending.join().expect("no panic")
    });
    eventually("the reaper starts", has_reaper);
    assert!(ledger.quota.in_flight_bytes() > 0);
    check(&receiver, &taken);
    // Nobody asks for the completions: the reaper alone takes the notices in.
    eventually("everything comes back", || {
        ledger.quota.in_flight_bytes() == 0
    });
    assert!(taken.iter().all(|(bytes, completion)| {
        completion
            .outcome()
            .is_some_and(|it| it.bytes == *bytes as u64)
    }));
    drop(taken);
    eventually("the ring is closed", || ring.strong_count() == 0);
    eventually("the reaper ends", || !has_reaper());
}

#[test]
fn a_completion_can_be_waited_for_after_its_thread_has_gone() {
    let _alone = ONE_AT_A_TIME.lock();
    let ledger = TestLedger::new();
    let (sender, receiver) = wire(1 << 20, 4 << 10);
    let taken = thread::scope(|scope| {
        let sending = scope.spawn(|| fill(&ledger, &sender));
        sending.join().expect("no panic")
    });
    let reading = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        let mut receiver = receiver;
        std::io::copy(&mut receiver, &mut std::io::sink()).expect("received")
    });
    wait_all(&taken);
    assert_eq!(ledger.quota.in_flight_bytes(), 0);
    drop(sender);
    reading.join().expect("no panic");
}

#[test]
fn a_reset_while_the_reaper_has_the_ring_gives_everything_back() {
    let _alone = ONE_AT_A_TIME.lock();
    let ledger = TestLedger::new();
    let (sender, receiver) = wire(1 << 20, 4 << 10);
    thread::scope(|scope| {
        let sending = scope.spawn(|| drop(fill(&ledger, &sender)));
        sending.join().expect("no panic");
    });
    assert!(ledger.quota.in_flight_bytes() > 0);
    drop(receiver);
    eventually("everything comes back", || {
        ledger.quota.in_flight_bytes() == 0
    });
}

#[cfg(feature = "tokio")]
mod on_tokio {
    use std::sync::atomic::Ordering;

    use tokio::runtime::{Builder, Runtime};

    use super::super::watched::TURNS;
    use super::*;
    use crate::sys::fork::tests::in_child;

    fn runtime() -> Runtime {
        Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
    }

    /// The rings that this process has open.
    fn open_rings() -> usize {
        let open = std::fs::read_dir("/proc/self/fd").expect("listed");
        let is_ring = |link: std::path::PathBuf| link.as_os_str() == "anon_inode:[io_uring]";
        open.flatten()
            .filter(|it| std::fs::read_link(it.path()).is_ok_and(is_ring))
            .count()
    }

    #[test]
    fn completions_are_woken() {
        let _alone = ONE_AT_A_TIME.lock();
        let ledger = TestLedger::new();
        runtime().block_on(async {
            let (sender, receiver) = wire(1 << 20, 4 << 10);
            let taken = fill(&ledger, &sender);
            let (_, last) = taken.last().expect("some").clone();
            let waiting = tokio::spawn(last);
            // A future that is dropped while it waits changes nothing.
            let (_, first) = taken.first().expect("some").clone();
            let dropped = tokio::time::timeout(Duration::from_millis(5), first).await;
            assert!(dropped.is_err());
            tokio::task::spawn_blocking(move || {
                check(&receiver, &taken);
                taken
            })
            .await
            .expect("no panic");
            let woken = tokio::time::timeout(Duration::from_secs(20), waiting).await;
            let settled = woken.expect("woken").expect("no panic");
            assert_eq!(settled.reason, crate::FreeReason::Notification);
        });
        assert_eq!(ledger.quota.in_flight_bytes(), 0);
    }

    #[test]
    fn each_runtime_has_a_ring_of_its_own() {
        let _alone = ONE_AT_A_TIME.lock();
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
        // The next ring that is made closes those that are retired.
        let third = runtime();
        ring_of(&third);
        assert_eq!(Arc::strong_count(&one), 1);
        assert!(Arc::ptr_eq(&other, &ring_of(&second)));
    }

    #[test]
    fn a_runtime_that_shuts_down_leaves_its_rings_to_the_reaper() {
        let _alone = ONE_AT_A_TIME.lock();
        let ledger = TestLedger::new();
        let (sender, receiver) = wire(1 << 20, 4 << 10);
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let (first, waiting) = runtime.block_on(async {
            let taken = fill(&ledger, &sender);
            let (_, last) = taken.last().expect("some").clone();
            (taken, tokio::spawn(last))
        });
        assert!(ledger.quota.in_flight_bytes() > 0);
        drop(runtime);
        assert!(waiting.is_finished());
        assert!(ledger.quota.in_flight_bytes() > 0);
        check(&receiver, &first);
        eventually("everything comes back", || {
            ledger.quota.in_flight_bytes() == 0
        });
        wait_all(&first);
    }

    /// Counted in a child process, where no other test opens rings.
    #[test]
    fn a_thousand_connections_share_one_ring() {
        let _alone = ONE_AT_A_TIME.lock();
        // Taken here: another thread may hold the pool's lock when this one forks.
        let pages = pattern(0, 32 << 10);
        let rings = in_child(|| {
            let ledger = TestLedger::new();
            runtime().block_on(async {
                let wires: Vec<_> = (0..1000).map(|_| wire(32 << 10, 4 << 10)).collect();
                let send = |(sender, _): &(TcpStream, TcpStream)| {
                    let taken = fill_with(&ledger, sender, |_| pages.clone());
                    assert!(!taken.is_empty());
                };
                send(&wires[0]);
                // One ring, by a few descriptors.
                let descriptors = open_rings();
                wires[1..].iter().for_each(send);
                u8::try_from(open_rings() - descriptors).expect("few")
            })
        });
        assert_eq!(rings, 0, "more rings than one");
    }

    /// Turns of watchers and CPU time of this process, over a while in which the peer does not read.
    #[test]
    fn sends_in_flight_cost_nothing_while_nothing_happens() {
        let _alone = ONE_AT_A_TIME.lock();
        let ledger = TestLedger::new();
        runtime().block_on(async {
            let wires: Vec<_> = (0..1000).map(|_| wire(32 << 10, 4 << 10)).collect();
            let taken: Vec<_> = wires
                .iter()
                .map(|(sender, _)| fill(&ledger, sender))
                .collect();
            let ring = ThreadRing::of_thread().expect("a ring");
            assert!(
                ring.ring.in_flight() >= 1000,
                "{} in flight",
                ring.ring.in_flight()
            );
            // What loopback still delivers, and acknowledgements that are held back.
            tokio::time::sleep(Duration::from_millis(500)).await;

            let (turns, cpu) = (TURNS.load(Ordering::Relaxed), cpu_time_of_thread());
            tokio::time::sleep(Duration::from_millis(300)).await;
            let turns = TURNS.load(Ordering::Relaxed) - turns;
            let cpu = cpu_time_of_thread() - cpu;
            assert!(turns <= 1, "{turns} turns");
            assert!(cpu < Duration::from_millis(10), "{cpu:?} of CPU time");
            assert!(ring.ring.in_flight() >= 1000);

            tokio::task::spawn_blocking(move || {
                for ((_, receiver), taken) in wires.iter().zip(&taken) {
                    check(receiver, taken);
                }
                (wires, taken)
            })
            .await
            .expect("no panic");
            eventually_here("everything comes back", || {
                ledger.quota.in_flight_bytes() == 0
            })
            .await;
        });
    }

    fn cpu_time_of_thread() -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::try_from(time).expect("not negative")
    }

    /// As [`eventually`], while the runtime runs.
    async fn eventually_here(what: &str, mut is_so: impl FnMut() -> bool) {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
