//! The health of targets.
//!
//! At first, the health of a target is unknown, which counts as up. The first result decides. From
//! then on, a target goes down after `fall` failures in a row, and up after `rise` successes in a
//! row. Results are those of checks, and of attempts to connect for clients: if a target refuses
//! clients, there is no need to wait for the next check.
//!
//! A check connects over TCP, or to the Unix socket, and closes the connection at once. If targets
//! expect a PROXY header, it sends one that says that there is no client (LOCAL, or UNKNOWN in
//! version 1). A name with several addresses is up if one of them accepts.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use super::config::HealthConfig;
use super::proxy_protocol::Header;
use super::target::{ConnectAddress, Pool, Target};

/// The longest time until the first check of a target.
const LONGEST_FIRST_PAUSE: Duration = Duration::from_secs(1);

/// What is known about a target's health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Health {
    /// Nothing yet, or targets are not checked. Connections are sent to it.
    #[default]
    Unknown,
    /// It accepts connections.
    Up,
    /// It does not. It is tried only after all others.
    Down,
}

/// The health of a target, and how many results in a row contradict it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Streak {
    health: Health,
    contrary: u16,
}

impl Streak {
    /// Returns the health.
    pub(crate) fn health(&self) -> Health {
        self.health
    }

    /// Takes a result into account. Returns the new health if a target goes down, or up after it
    /// was down.
    pub(crate) fn record(&mut self, is_success: bool, config: HealthConfig) -> Option<Health> {
        let (health, needed) = match is_success {
            true => (Health::Up, config.rise),
            false => (Health::Down, config.fall),
        };
        if self.health == health {
            self.contrary = 0;
            return None;
        }
        self.contrary += 1;
        let was_unknown = self.health == Health::Unknown;
        if !was_unknown && self.contrary < needed {
            return None;
        }
        *self = Self {
            health,
            contrary: 0,
        };
        // That a target works at the start is no news.
        (!(was_unknown && is_success)).then_some(health)
    }
}

/// Checks a target at the configured interval, forever.
pub(crate) async fn check_regularly(pool: Arc<Pool>, target: Arc<Target>, config: HealthConfig) {
    // Spread the checks, so that they do not all come at the same moment.
    sleep(
        config
            .interval
            .min(LONGEST_FIRST_PAUSE)
            .mul_f64(fastrand::f64()),
    )
    .await;
    loop {
        check(&pool, &target, config).await;
        sleep(jittered(config.interval)).await;
    }
}

/// Returns a time that is up to a tenth shorter or longer.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + 0.2 * fastrand::f64())
}

/// Checks a target once, unless its name has not been resolved yet.
pub(crate) async fn check(pool: &Pool, target: &Target, config: HealthConfig) {
    let addresses = target.addresses();
    if addresses.is_empty() {
        return;
    }
    let header = pool
        .send_proxy()
        .map(|version| Header::Local.encode(version));
    let mut outcome = Ok(());
    for address in addresses.iter() {
        let connecting = probe(address, header.as_deref());
        outcome = match config.timeout {
            None => connecting.await,
            Some(limit) => timeout(limit, connecting)
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
        };
        if outcome.is_ok() {
            break;
        }
    }
    pool.record_check(target, outcome.as_ref().copied());
}

/// Connects, sends a header, and closes.
async fn probe(address: &ConnectAddress, header: Option<&[u8]>) -> io::Result<()> {
    match address {
        ConnectAddress::Tcp(address) => {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(header.unwrap_or_default()).await
        }
        ConnectAddress::Unix(path) => {
            let mut stream = UnixStream::connect(path).await?;
            stream.write_all(header.unwrap_or_default()).await
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONFIG: HealthConfig = HealthConfig {
        interval: Duration::from_secs(5),
        timeout: None,
        rise: 2,
        fall: 3,
    };

    #[test]
    fn health_changes_after_results_in_a_row() {
        // Results, with the changes that they cause: "-" is a failure, "+" a success.
        for (results, changes) in [
            ("-", &[(0, Health::Down)][..]),
            ("+", &[]),
            ("+--+--+--", &[]),
            ("+---", &[(3, Health::Down)]),
            ("-+-+-+", &[(0, Health::Down)]),
            ("-++", &[(0, Health::Down), (2, Health::Up)]),
            (
                "+------++--+---",
                &[(3, Health::Down), (8, Health::Up), (14, Health::Down)],
            ),
        ] {
            let mut streak = Streak::default();
            let found: Vec<_> = results
                .bytes()
                .enumerate()
                .filter_map(|(n, result)| Some((n, streak.record(result == b'+', CONFIG)?)))
                .collect();
            assert_eq!(found, changes, "{results}");
        }
    }

    proptest! {
        #[test]
        fn pauses_differ_by_at_most_a_tenth(millis in 1..1_000_000_u64) {
            let interval = Duration::from_millis(millis);
            let pause = jittered(interval);
            prop_assert!(pause >= interval.mul_f64(0.899) && pause <= interval.mul_f64(1.101));
        }

        /// After as many results in a row as it takes, the health is what they say.
        #[test]
        fn the_last_results_decide(
            before in prop::collection::vec(any::<bool>(), 0..30),
            (rise, fall) in (1..6_u16, 1..6_u16),
            last in any::<bool>(),
        ) {
            let config = HealthConfig { rise, fall, ..CONFIG };
            let mut streak = Streak::default();
            for result in before {
                let _ = streak.record(result, config);
            }
            for _ in 0..if last { rise } else { fall } {
                let _ = streak.record(last, config);
            }
            let expected = if last { Health::Up } else { Health::Down };
            prop_assert_eq!(streak.health(), expected);
        }
    }
}
