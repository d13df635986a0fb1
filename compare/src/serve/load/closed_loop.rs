//! The load that shows how many requests per second a server can respond to: on each connection,
//! the next request follows as soon as a response is complete.

use super::generator::Generator;
use super::{LoadSettings, Served};
use crate::error::Error;
use crate::load::closed_loop::ClosedLoop;
use crate::load::{self, LoadUsage};

/// The result of one measurement.
#[derive(Debug, Clone, Copy)]
pub(in crate::serve) struct LoadSample {
    /// Duration of the measurement.
    pub(in crate::serve) seconds: f64,
    /// The number of responses. Of a response that was in progress when the measurement began or
    /// ended, only the fraction that arrived during the measurement counts.
    pub(in crate::serve) requests: f64,
    /// The number of body bytes in these responses.
    pub(in crate::serve) body_bytes: f64,
    /// CPU time of the server's process.
    pub(in crate::serve) server_cpu_seconds: f64,
    /// Busy time of all CPUs together, for all processes and the kernel.
    pub(in crate::serve) machine_busy_seconds: f64,
    /// CPU time of this load generator.
    pub(in crate::serve) load_cpu_seconds: f64,
    /// The part of `load_cpu_seconds` in which the load generator only looked for something to
    /// receive, and found nothing.
    pub(in crate::serve) load_idle_seconds: f64,
}

/// Puts `served` under load and measures it.
///
/// # Errors
///
/// [`Error::WrongResult`] if a response is wrong or cut short, and [`Error::Interrupted`] after
/// Ctrl-C or SIGTERM.
pub(in crate::serve) fn run(
    served: &Served<'_>,
    settings: LoadSettings,
) -> Result<LoadSample, Error> {
    let mut generator = Generator::connect(served, settings)?;
    let mut closed_loop = ClosedLoop::start(&mut generator)?;
    let LoadUsage {
        usage,
        idle_seconds,
    } = load::measure(&mut closed_loop, served.pid, settings.times)?;
    let body_bytes = usage.received_bytes as f64;
    Ok(LoadSample {
        seconds: usage.seconds,
        requests: body_bytes / served.set.size() as f64,
        body_bytes,
        server_cpu_seconds: usage.process_cpu_seconds,
        machine_busy_seconds: usage.machine_busy_seconds,
        load_cpu_seconds: usage.own_cpu_seconds,
        load_idle_seconds: idle_seconds,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::test_server;
    use super::*;
    use crate::serve::case::{MIN_DISCARD_BYTES, Receiver};
    use crate::serve::site::FileSet;

    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";

    /// Runs a closed loop against a server that sends one of `responses` for each request.
    fn try_load(responses: Vec<Vec<u8>>) -> Result<LoadSample, Error> {
        let count = responses.len();
        let mut responses = responses.into_iter();
        let (address, server) =
            test_server::start(count, move |_| responses.next().unwrap_or_default());
        let set = FileSet::new(5, 1);
        let settings = LoadSettings {
            is_distinct: false,
            ..test_server::settings(Receiver::Copy)
        };
        let result = run(&test_server::served(address, &set), settings);
        server.join().unwrap();
        result
    }

    fn complete(body: &[u8]) -> Vec<u8> {
        [HEAD, body].concat()
    }

    #[test]
    fn wrong_bytes_and_early_ends_are_errors() {
        let message = |responses| match try_load(responses) {
            Err(Error::WrongResult(message)) => message,
            other => panic!("{other:?}"),
        };
        let body = FileSet::new(5, 1).bytes(0).into_owned();
        let wrong = [&body[..4], &[body[4] ^ 1]].concat();
        assert!(message(vec![complete(&wrong)]).contains("wrong bytes"));
        let long = [&body[..], b"!"].concat();
        assert!(message(vec![complete(&long)]).contains("wrong bytes"));
        assert!(message(vec![complete(&body[..4])]).contains("closed"));
        let other = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello!".to_vec();
        assert!(message(vec![other]).contains("Content-Length 6"));
        let later = b"HTTP/1.1 404 No\r\nContent-Length: 5\r\n\r\nhello".to_vec();
        let first = complete(&body);
        assert!(message(vec![first.clone(), later]).contains("status 200"));
        assert!(message(vec![first.clone(), complete(&wrong)]).contains("another file"));
        assert!(message(vec![first.clone(), complete(&long)]).contains("longer"));
        assert!(message(vec![first.clone(), first]).contains("closed"));
    }

    #[test]
    fn responses_are_counted_and_timed() {
        for receiver in [Receiver::Copy, Receiver::Discard] {
            count_and_time(receiver);
        }
    }

    fn count_and_time(receiver: Receiver) {
        let set = FileSet::new(3 * MIN_DISCARD_BYTES, 1);
        let body = set.bytes(0).into_owned();
        let mut response =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        response.extend_from_slice(&body);
        let mut seen = std::collections::HashSet::new();
        let mut is_first = true;
        let (address, server) = test_server::start(usize::MAX, move |request| {
            let is_new = std::mem::take(&mut is_first) || seen.insert(*request);
            assert!(is_new, "the same request twice");
            response.clone()
        });
        let served = test_server::served(address, &set);
        let sample = run(&served, test_server::settings(receiver)).unwrap();
        let responses = f64::from(server.join().unwrap());
        assert!(sample.requests > 10.0);
        // Up to three responses are outside the measurement: the one that is compared with the
        // file, one that arrives during the warm-up, and one that arrives after the end.
        let outside = responses - sample.requests;
        assert!((1.0..=3.0).contains(&outside), "{responses} {sample:?}");
        assert!((sample.seconds - 0.2).abs() < 0.15, "{sample:?}");
        assert_eq!(sample.body_bytes, sample.requests * set.size() as f64);
        assert!(sample.load_cpu_seconds > 0.0);
    }
}
