//! The metrics as text.
//!
//! # References
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>, version 0.0.4.

use std::fmt::{self, Display, Write as _};
use std::sync::Arc;

use crate::commands::relay::connection::{ConnectError, EndKind};
use crate::commands::relay::health::Health;
use crate::commands::relay::stats::{Direction, Totals};
use crate::commands::relay::target::{Pool, Target};

use super::Observed;

/// Returns the text of all metrics.
pub(super) fn text(observed: &Observed) -> String {
    let mut page = Page(String::new());
    connections(&mut page, observed);
    targets(&mut page, &observed.pools.borrow());
    page.gauge(
        "pipes_in_use",
        "Pipes that hold bytes for a full socket.",
        uncopied::relay::pipes_in_use(),
    );
    if let Some(log) = &observed.log {
        page.counter(
            "access_log_dropped_lines_total",
            "Lines of the access log that were lost.",
            log.dropped_lines(),
        );
    }
    page.0
}

fn connections(page: &mut Page, observed: &Observed) {
    let Totals {
        accepted,
        ended,
        connect_errors,
        bytes,
    } = observed.totals();
    page.counter(
        "connections_total",
        "Connections accepted, including those refused.",
        accepted,
    );
    page.gauge(
        "connections_open",
        "Connections that are open.",
        observed.open_connections(),
    );
    page.gauge(
        "connections_limit",
        "The maximum number of open connections.",
        observed.max_connections,
    );
    page.head(
        "connections_ended_total",
        "counter",
        "Connections that have ended, by the way in which they did.",
    );
    for (kind, count) in EndKind::ALL.into_iter().zip(ended) {
        page.sample("connections_ended_total", &[("end", &kind.name())], count);
    }
    page.head(
        "bytes_total",
        "counter",
        "Bytes that sockets have accepted, by direction and mechanism.",
    );
    for direction in Direction::ALL {
        for (mechanism, bytes) in bytes.by_mechanism(direction) {
            let labels: [(_, &dyn Display); 2] =
                [("direction", &direction.name()), ("mechanism", &mechanism)];
            page.sample("bytes_total", &labels, bytes);
        }
    }
    page.head(
        "connect_errors_total",
        "counter",
        "Attempts to connect to an address of a target that failed.",
    );
    for (kind, count) in ConnectError::ALL.into_iter().zip(connect_errors) {
        page.sample("connect_errors_total", &[("error", &kind.name())], count);
    }
}

fn targets(page: &mut Page, pools: &[Arc<Pool>]) {
    page.targets(
        pools,
        "target_up",
        "gauge",
        "1 unless checks have found that the target is down.",
        |target| u64::from(target.health() != Health::Down),
    );
    page.targets(
        pools,
        "target_connections_open",
        "gauge",
        "Open connections to the target, and attempts in progress.",
        |target| target.connections() as u64,
    );
    page.targets(
        pools,
        "target_connections_total",
        "counter",
        "Connections to the target.",
        Target::connected,
    );
    page.targets(
        pools,
        "target_failures_total",
        "counter",
        "Failed attempts to connect to the target for a client.",
        Target::failed,
    );
    page.targets(
        pools,
        "target_failed_checks_total",
        "counter",
        "Checks of the target that failed.",
        Target::failed_checks,
    );
}

/// The text so far. Writing to a string never fails, so results of `write!` are ignored.
struct Page(String);

impl Page {
    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.sample(name, &[], value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: usize) {
        self.head(name, "gauge", help);
        self.sample(name, &[], value as u64);
    }

    fn targets(
        &mut self,
        pools: &[Arc<Pool>],
        name: &str,
        kind: &str,
        help: &str,
        value: impl Fn(&Target) -> u64,
    ) {
        self.head(name, kind, help);
        for pool in pools {
            for target in pool.targets() {
                let labels: [(_, &dyn Display); 2] =
                    [("listener", pool.listen()), ("target", target.address())];
                self.sample(name, &labels, value(target));
            }
        }
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(
            self.0,
            "# HELP uncopied_relay_{name} {help}\n# TYPE uncopied_relay_{name} {kind}\n"
        );
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: u64) {
        let _ = write!(self.0, "uncopied_relay_{name}");
        for (index, (label, value)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{before}{label}=\"{}\"", Escaped(value));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }
}

/// A label's value, with backslashes, quotes and line feeds escaped.
struct Escaped<'a>(&'a dyn Display);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.to_string().chars() {
            match character {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_the_format_of_prometheus() {
        let mut page = Page(String::new());
        page.counter("connections_total", "Connections.", 3);
        page.head("bytes_total", "counter", "Bytes.");
        page.sample("bytes_total", &[("a", &"x\"\\\n"), ("b", &7)], 12);
        assert_eq!(
            page.0,
            "# HELP uncopied_relay_connections_total Connections.\n\
             # TYPE uncopied_relay_connections_total counter\n\
             uncopied_relay_connections_total 3\n\
             # HELP uncopied_relay_bytes_total Bytes.\n\
             # TYPE uncopied_relay_bytes_total counter\n\
             uncopied_relay_bytes_total{a=\"x\\\"\\\\\\n\",b=\"7\"} 12\n"
        );
    }
}
