//! The load that shows how long clients of a server wait for a response: see
//! [`crate::load::open_loop`].

use super::generator::Generator;
use super::{LoadSettings, Served};
use crate::error::Error;
use crate::load::latency::LatencySample;
use crate::load::open_loop;

/// Sends requests to `served` at a mean rate of `rate` per second, and measures the latencies.
///
/// # Errors
///
/// See [`super::closed_loop::run`].
pub(in crate::serve) fn run(
    served: &Served<'_>,
    settings: LoadSettings,
    rate: f64,
) -> Result<LatencySample, Error> {
    let mut generator = Generator::connect(served, settings)?;
    open_loop::run(&mut generator, settings.times, rate)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::test_server;
    use std::time::Duration;

    use super::*;
    use crate::load::LoadTimes;
    use crate::serve::case::Receiver;
    use crate::serve::site::FileSet;

    /// Runs an open loop against a server that takes `pause` for each response.
    fn latencies(pause: Duration, rate: f64) -> LatencySample {
        let set = FileSet::new(100, 1);
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n";
        let response = [&head[..], &set.bytes(0)].concat();
        let (address, server) = test_server::start(usize::MAX, move |_| {
            std::thread::sleep(pause);
            response.clone()
        });
        let served = test_server::served(address, &set);
        let settings = LoadSettings {
            times: LoadTimes {
                warm_up: Duration::from_millis(20),
                window: Duration::from_millis(400),
            },
            ..test_server::settings(Receiver::Copy)
        };
        let sample = run(&served, settings, rate).unwrap();
        server.join().unwrap();
        sample
    }

    #[test]
    fn a_server_that_keeps_up_has_the_latency_of_a_response() {
        let sample = latencies(Duration::from_millis(1), 50.0);
        assert!((5..50).contains(&sample.due), "{sample:?}");
        assert!(sample.due - sample.completed <= 2, "{sample:?}");
        assert!(sample.latencies[0] > 0.001, "{sample:?}");
        assert!(sample.latencies.is_sorted(), "{sample:?}");
    }

    /// The server could respond to at most 100 requests per second, and 1000 are due. Each response
    /// takes 10 ms, but the requests wait much longer until they are sent.
    #[test]
    fn waiting_for_a_slow_server_counts() {
        let sample = latencies(Duration::from_millis(10), 1000.0);
        assert!((200..600).contains(&sample.due), "{sample:?}");
        assert!(sample.completed < 50, "{sample:?}");
        assert!(sample.latencies[0] > 0.1, "{sample:?}");
    }
}
