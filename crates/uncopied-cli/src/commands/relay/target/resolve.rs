//! Resolves the names of targets, at the start and again in time.
//!
//! Names are resolved by the C library, so that /etc/hosts and the system's settings apply. It does
//! not tell how long a result is valid. So names are resolved at a fixed interval. If that fails,
//! or finds no address, the old addresses stay in use: a name server that fails must not stop a
//! relay whose targets work.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::error::kernel_text;
use crate::flags::TargetAddress;

use super::{ConnectAddress, Pool, Target, TargetState};

/// The pause before the first retry of a look-up that failed. Each further pause is twice as long.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest pause between retries, if the interval is longer or names are resolved only once.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// When names are resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResolveSchedule {
    /// The pause after a success. `None` if there is no further look-up.
    interval: Option<Duration>,
}

impl ResolveSchedule {
    pub(super) fn every(interval: Option<Duration>) -> Self {
        Self { interval }
    }

    /// Returns the pause after `failures` failures in a row. `None` if there is no further look-up.
    fn pause(self, failures: u32) -> Option<Duration> {
        let Some(doublings) = failures.checked_sub(1) else {
            return self.interval;
        };
        let pause = FIRST_RETRY.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX));
        let longest = self
            .interval
            .map_or(LONGEST_RETRY, |interval| interval.min(LONGEST_RETRY));
        Some(pause.min(longest))
    }
}

/// Resolves all names that have no address yet, at the same time, and waits at most for `limit`.
/// Names that fail or take longer are told, and resolved later (see [`Upkeep`](super::Upkeep)).
pub(crate) async fn resolve_all(pools: &[Arc<Pool>], limit: Duration) {
    let mut tasks = JoinSet::new();
    for pool in pools {
        for target in pool.targets().iter().filter(|target| !target.has_address()) {
            let (pool, target) = (Arc::clone(pool), Arc::clone(target));
            tasks.spawn(async move {
                resolve_within(&pool, &target, look_up(&target), limit).await;
            });
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// Takes over the result of a look-up, or tells that there is none within the limit.
pub(super) async fn resolve_within(
    pool: &Pool,
    target: &Target,
    looking_up: impl Future<Output = io::Result<Vec<ConnectAddress>>>,
    limit: Duration,
) {
    // After the limit, the look-up is dropped. The thread that makes it ends on its own.
    let found = timeout(limit, looking_up).await;
    let found = found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    if let Update::Failed(reason) = update(target, found) {
        let state = TargetState::Unresolved(reason, target.addresses());
        pool.tell(target, state);
    }
}

/// Resolves a name again and again.
pub(super) async fn resolve_regularly(pool: Arc<Pool>, target: Arc<Target>) {
    let mut failures = u32::from(!target.has_address());
    while let Some(pause) = pool.resolve.pause(failures) {
        sleep(pause).await;
        match update(&target, look_up(&target).await) {
            Update::Same if failures == 0 => {}
            Update::Same | Update::New => {
                failures = 0;
                pool.tell(&target, TargetState::Resolved(target.addresses()));
            }
            Update::Failed(reason) => {
                // Tell only the first of several failures in a row.
                if failures == 0 {
                    pool.tell(&target, TargetState::Unresolved(reason, target.addresses()));
                }
                failures = failures.saturating_add(1);
            }
        }
    }
}

/// Returns the addresses of a name, in order, without duplicates. At least one.
async fn look_up(target: &Target) -> io::Result<Vec<ConnectAddress>> {
    let TargetAddress::Name { host, port } = target.address() else {
        return Ok(target.addresses().to_vec());
    };
    let found = in_thread((host.clone(), *port)).await?;
    let mut addresses: Vec<_> = found.into_iter().map(ConnectAddress::Tcp).collect();
    addresses.sort();
    addresses.dedup();
    match addresses.is_empty() {
        true => Err(io::Error::other("the name has no address")),
        false => Ok(addresses),
    }
}

/// Resolves a name in a thread of its own, which ends by itself. The event loop would wait at the
/// end of the process for one of its own threads, and a look-up can take minutes.
async fn in_thread(name: (String, u16)) -> io::Result<Vec<SocketAddr>> {
    let (sender, receiver) = oneshot::channel();
    let look_up = move || {
        let found = name.to_socket_addrs().map(Vec::from_iter);
        // Ignore an error: the result came too late for anyone to want it.
        let _ = sender.send(found);
    };
    thread::Builder::new()
        .name("resolve".to_owned())
        .spawn(look_up)?;
    let lost = |_| io::Error::other("the look-up has no result");
    receiver.await.map_err(lost)?
}

/// What a look-up has changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Update {
    /// The addresses are the same as before.
    Same,
    /// There are other addresses.
    New,
    /// There was no result, for this reason. The addresses are the same as before.
    Failed(String),
}

/// Takes the result of a look-up over.
pub(super) fn update(target: &Target, found: io::Result<Vec<ConnectAddress>>) -> Update {
    match found {
        Err(error) => Update::Failed(kernel_text(&error)),
        Ok(addresses) => match target.set_addresses(addresses) {
            true => Update::New,
            false => Update::Same,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_at_most_as_far_apart_as_successes() {
        let seconds = |n| Some(Duration::from_secs(n));
        let pauses = |interval| {
            let schedule = ResolveSchedule::every(interval);
            [0, 1, 2, 3, 4, 7, u32::MAX].map(|failures| schedule.pause(failures))
        };
        let often = [3, 1, 2, 3, 3, 3, 3].map(seconds);
        assert_eq!(pauses(seconds(3)), often);
        let mut rarely = [600, 1, 2, 4, 8, 30, 30].map(seconds);
        assert_eq!(pauses(seconds(600)), rarely);
        rarely[0] = None;
        assert_eq!(pauses(None), rarely);
    }
}
