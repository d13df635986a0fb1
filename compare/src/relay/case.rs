//! The cases that relays are measured in: what is sent through them, and over how many connections.

use clap::ValueEnum;

use crate::rounds::Case;
use crate::table::size_text;

/// The number of connections that are open at the same time while connections per second are
/// measured.
pub(super) const OPEN_CONNECTIONS: u16 = 32;

/// The end of a connection that bytes are sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the client, through the relay, to the server.
    ToServer,
    /// From the server, through the relay, to the client.
    ToClient,
}

/// A part of the run, to be selected with `--only`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum MeasuredPart {
    /// Throughput and CPU per GB.
    Bulk,
    /// Round trips per second, CPU per round trip, and latency.
    RoundTrips,
    /// Connections per second and CPU per connection.
    Connections,
}

/// A case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RelayCase {
    /// As many bytes as possible, on each of these connections, in one direction.
    Bulk {
        /// The number of connections.
        connections: u16,
        /// The direction.
        direction: Direction,
    },
    /// Messages that the server sends back. On each connection, the next message follows when the
    /// previous one has come back.
    RoundTrips {
        /// The size of a message in bytes.
        bytes: u64,
        /// The number of connections.
        connections: u16,
    },
    /// Messages that the server sends back, at a fixed rate. Follows directly after the case of
    /// round trips with the same values, which shows what the rate has to be.
    Latency {
        /// The size of a message in bytes.
        bytes: u64,
        /// The number of connections.
        connections: u16,
    },
    /// New connections, each with one round trip of one byte.
    Connections,
}

impl RelayCase {
    /// The part that the case belongs to.
    pub(super) fn part(self) -> MeasuredPart {
        match self {
            Self::Bulk { .. } => MeasuredPart::Bulk,
            Self::RoundTrips { .. } | Self::Latency { .. } => MeasuredPart::RoundTrips,
            Self::Connections => MeasuredPart::Connections,
        }
    }
}

impl Case for RelayCase {
    const COLUMN: &'static str = "work/connections";

    fn text(self) -> String {
        let over = |connections| match connections {
            1 => "1 connection".to_owned(),
            connections => format!("{connections} connections"),
        };
        match self {
            Self::Bulk {
                connections,
                direction,
            } => match direction {
                Direction::ToServer => format!("to the server, {}", over(connections)),
                Direction::ToClient => format!("to the client, {}", over(connections)),
            },
            Self::RoundTrips { bytes, connections } => {
                format!("{}, {}", size_text(bytes), over(connections))
            }
            Self::Latency { bytes, connections } => {
                format!("latency of {}, {}", size_text(bytes), over(connections))
            }
            Self::Connections => format!("{OPEN_CONNECTIONS} at a time"),
        }
    }

    fn phrase(self) -> String {
        match self {
            Self::Bulk { .. } | Self::Connections => self.text(),
            Self::RoundTrips { .. } | Self::Latency { .. } => format!("with {}", self.text()),
        }
    }

    fn key(self) -> String {
        match self {
            Self::Bulk {
                connections,
                direction: Direction::ToServer,
            } => format!("bulk_to_server/{connections}"),
            Self::Bulk {
                connections,
                direction: Direction::ToClient,
            } => format!("bulk_to_client/{connections}"),
            Self::RoundTrips { bytes, connections } => {
                format!("round_trips_{bytes}/{connections}")
            }
            Self::Latency { bytes, connections } => format!("latency_{bytes}/{connections}"),
            Self::Connections => format!("connections/{OPEN_CONNECTIONS}"),
        }
    }
}

/// Returns the cases of a run, in the order in which they are measured: those of one part, or all.
pub(super) fn all(
    bulk_connections: &[u16],
    message_bytes: &[u64],
    message_connections: &[u16],
    only: Option<MeasuredPart>,
) -> Vec<RelayCase> {
    let mut cases = Vec::new();
    for &connections in bulk_connections {
        for direction in [Direction::ToServer, Direction::ToClient] {
            cases.push(RelayCase::Bulk {
                connections,
                direction,
            });
        }
    }
    for &connections in message_connections {
        for &bytes in message_bytes {
            cases.push(RelayCase::RoundTrips { bytes, connections });
            cases.push(RelayCase::Latency { bytes, connections });
        }
    }
    cases.push(RelayCase::Connections);
    cases.retain(|case| only.is_none_or(|part| case.part() == part));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_case_has_a_name_of_its_own() {
        let cases = all(&[1, 8], &[1, 1024], &[64], None);
        let names: Vec<_> = cases.iter().map(|case| (case.text(), case.key())).collect();
        let expected = [
            ("to the server, 1 connection", "bulk_to_server/1"),
            ("to the client, 1 connection", "bulk_to_client/1"),
            ("to the server, 8 connections", "bulk_to_server/8"),
            ("to the client, 8 connections", "bulk_to_client/8"),
            ("1 B, 64 connections", "round_trips_1/64"),
            ("latency of 1 B, 64 connections", "latency_1/64"),
            ("1 KiB, 64 connections", "round_trips_1024/64"),
            ("latency of 1 KiB, 64 connections", "latency_1024/64"),
            ("32 at a time", "connections/32"),
        ];
        let expected = expected.map(|(text, key)| (text.to_owned(), key.to_owned()));
        assert_eq!(names, expected);
        let connections = all(&[1], &[1], &[1], Some(MeasuredPart::Connections));
        assert_eq!(connections, [RelayCase::Connections]);
    }
}
