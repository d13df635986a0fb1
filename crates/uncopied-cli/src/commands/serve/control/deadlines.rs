//! Enforces deadlines without a timer per connection.
//!
//! A timer per connection would have to be armed and disarmed for every request. Instead, a
//! connection only records what it waits for, and since when (the stream's [`Activity`]). The
//! control thread sweeps all connections at an interval of a quarter of the shortest deadline, but
//! at least 50 ms and at most 1 s. A deadline is thus enforced at most one interval late, and costs
//! nothing between two sweeps.
//!
//! | the connection | counted from | deadline | command |
//! |---|---|---|---|
//! | has received no byte of its first request | accept | `--header-timeout` | abort |
//! | has received part of a request head | its first byte | `--header-timeout` | abort |
//! | waits until the server has prepared the response | - | none | - |
//! | sends a response that the peer does not read | see below | `--send-timeout` | abort |
//! | is idle between two requests | the end of the last response | `--keepalive-timeout` | drain |
//! | is in any state | accept | `--keepalive-time` | drain |
//!
//! Only the kernel knows whether a peer is reading a response. The send buffer of a TCP socket
//! holds up to 4 MiB by default, and the socket becomes writable again only once a third of the
//! buffer is free. With a slow but healthy peer, that may take minutes. On TCP, the kernel
//! therefore enforces the send deadline (`TCP_USER_TIMEOUT`), counted from the last byte that the
//! peer acknowledged, or from the moment when the peer closed its window. A Unix socket accepts
//! more bytes as soon as the peer reads some. For Unix sockets, the control thread therefore
//! enforces the deadline, counted from the last byte that the socket accepted.
//!
//! *Abort* drops the connection. *Drain* closes it once no request is in progress: immediately if
//! it is idle, otherwise after the current response. If an idle connection is told to drain because
//! of `--keepalive-timeout`, and is still open at the next sweep, it is aborted.
//!
//! [`Activity`]: uncopied_http::Activity

use std::time::{Duration, Instant};

use uncopied_http::Phase;

use crate::commands::serve::connection::{ConnectionCommand, ConnectionState, ConnectionTable};

/// The time limits of a connection. `None` means that there is no limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines {
    /// The maximum time from the accept to the first byte of the first request, and from the first
    /// byte of any request to the end of its head.
    pub(crate) head: Option<Duration>,
    /// The maximum time during which the peer accepts no byte of a response.
    pub(crate) send: Option<Duration>,
    /// The maximum idle time between two requests.
    pub(crate) idle: Option<Duration>,
    /// The maximum age of a connection, counted from the accept. An older connection is closed
    /// after its current request.
    pub(crate) age: Option<Duration>,
    /// The time from the signal to stop until the remaining connections are aborted.
    pub(crate) grace: Duration,
}

/// While the server drains, the maximum time from the accept to the first request of a connection.
/// It is not 0, because the request may already be on its way.
const FIRST_REQUEST_TIMEOUT_WHEN_DRAINING: Duration = Duration::from_secs(1);

/// The state of one connection at the time of a sweep.
#[derive(Debug)]
struct ConnectionSnapshot {
    phase: Phase,
    has_received_request: bool,
    /// Whether a request head is incomplete: part of it has arrived, but not all.
    is_reading_head: bool,
    /// Whether the connection uses TCP. If so, the kernel enforces the send deadline.
    is_tcp: bool,
    command: ConnectionCommand,
    age: Duration,
    time_in_phase: Duration,
}

impl Deadlines {
    /// Returns the time between two sweeps.
    pub(crate) fn sweep_interval(&self) -> Duration {
        let all = [self.head, self.send, self.idle, self.age];
        let shortest = all.into_iter().flatten().min().unwrap_or(Duration::MAX);
        (shortest / 4).clamp(Duration::from_millis(50), Duration::from_secs(1))
    }

    /// Checks the connections of one worker, and sends commands to those that are past a deadline.
    pub(crate) fn sweep(&self, connections: &ConnectionTable, now: Instant, is_draining: bool) {
        connections.for_each(|connection: &ConnectionState| {
            let snapshot = ConnectionSnapshot {
                phase: connection.phase(),
                has_received_request: connection.has_received_request(),
                is_reading_head: connection.is_reading_head(),
                is_tcp: connection.is_tcp,
                command: connection.command(),
                age: now.saturating_duration_since(connection.accepted),
                time_in_phase: now.saturating_duration_since(connection.activity.since()),
            };
            match self.command_for(&snapshot, is_draining) {
                ConnectionCommand::None => {}
                command => connection.send(command),
            }
        });
    }

    fn command_for(&self, connection: &ConnectionSnapshot, is_draining: bool) -> ConnectionCommand {
        let is_past =
            |time: Duration, limit: Option<Duration>| limit.is_some_and(|limit| time >= limit);
        let ConnectionSnapshot {
            age, time_in_phase, ..
        } = *connection;
        let is_expired = match connection.phase {
            Phase::Idle if !connection.has_received_request => {
                is_past(age, self.head) || is_draining && age >= FIRST_REQUEST_TIMEOUT_WHEN_DRAINING
            }
            Phase::Idle => {
                is_past(time_in_phase, self.idle) && connection.command == ConnectionCommand::Drain
            }
            // Apply the deadline only to an incomplete head. Once the whole head has arrived, the
            // connection waits for the server, not for the peer.
            Phase::Head => connection.is_reading_head && is_past(time_in_phase, self.head),
            Phase::Sending => !connection.is_tcp && is_past(time_in_phase, self.send),
            Phase::Active => false,
        };
        let is_idle = matches!(connection.phase, Phase::Idle) && connection.has_received_request;
        if is_expired {
            ConnectionCommand::Abort
        } else if is_past(age, self.age) || is_idle && is_past(time_in_phase, self.idle) {
            ConnectionCommand::Drain
        } else {
            ConnectionCommand::None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const DEADLINES: Deadlines = Deadlines {
        head: Some(Duration::from_secs(10)),
        send: Some(Duration::from_secs(20)),
        idle: Some(Duration::from_secs(30)),
        age: Some(Duration::from_secs(1000)),
        grace: Duration::ZERO,
    };

    fn connection(
        phase: Phase,
        has_received_request: bool,
        age: u32,
        time_in_phase: u32,
    ) -> ConnectionSnapshot {
        let command = ConnectionCommand::None;
        let is_reading_head = matches!(phase, Phase::Head);
        ConnectionSnapshot {
            phase,
            has_received_request,
            is_reading_head,
            is_tcp: false,
            command,
            age: age * SECOND,
            time_in_phase: time_in_phase * SECOND,
        }
    }

    #[test]
    fn each_row_of_the_table_is_enforced() {
        for (connection, command) in [
            (
                connection(Phase::Idle, false, 9, 9),
                ConnectionCommand::None,
            ),
            (
                connection(Phase::Idle, false, 10, 1),
                ConnectionCommand::Abort,
            ),
            (
                connection(Phase::Head, false, 10, 9),
                ConnectionCommand::None,
            ),
            (
                connection(Phase::Head, true, 500, 10),
                ConnectionCommand::Abort,
            ),
            (
                connection(Phase::Sending, true, 500, 19),
                ConnectionCommand::None,
            ),
            (
                connection(Phase::Sending, true, 500, 20),
                ConnectionCommand::Abort,
            ),
            (
                connection(Phase::Idle, true, 500, 29),
                ConnectionCommand::None,
            ),
            (
                connection(Phase::Idle, true, 500, 30),
                ConnectionCommand::Drain,
            ),
            (
                connection(Phase::Active, true, 999, 999),
                ConnectionCommand::None,
            ),
            (
                connection(Phase::Active, true, 1000, 0),
                ConnectionCommand::Drain,
            ),
            (
                connection(Phase::Sending, true, 1000, 20),
                ConnectionCommand::Abort,
            ),
        ] {
            assert_eq!(
                DEADLINES.command_for(&connection, false),
                command,
                "{connection:?}"
            );
        }
    }

    #[test]
    fn preparing_a_response_has_no_deadline() {
        let preparing = ConnectionSnapshot {
            is_reading_head: false,
            ..connection(Phase::Head, true, 500, 400)
        };
        assert_eq!(
            DEADLINES.command_for(&preparing, false),
            ConnectionCommand::None
        );
    }

    #[test]
    fn a_connection_still_idle_after_the_command_to_drain_is_aborted() {
        let draining = ConnectionSnapshot {
            command: ConnectionCommand::Drain,
            ..connection(Phase::Idle, true, 500, 30)
        };
        assert_eq!(
            DEADLINES.command_for(&draining, false),
            ConnectionCommand::Abort
        );
    }

    #[test]
    fn a_draining_server_waits_a_second_for_a_first_request() {
        assert_eq!(
            DEADLINES.command_for(&connection(Phase::Idle, false, 0, 0), true),
            ConnectionCommand::None
        );
        assert_eq!(
            DEADLINES.command_for(&connection(Phase::Idle, false, 1, 1), true),
            ConnectionCommand::Abort
        );
        assert_eq!(
            DEADLINES.command_for(&connection(Phase::Head, false, 1, 1), true),
            ConnectionCommand::None
        );
    }

    #[test]
    fn a_disabled_deadline_never_closes_a_connection() {
        let disabled = Deadlines {
            head: None,
            send: None,
            idle: None,
            age: None,
            ..DEADLINES
        };
        for phase in [Phase::Idle, Phase::Head, Phase::Sending, Phase::Active] {
            assert_eq!(
                disabled.command_for(&connection(phase, false, 9999, 9999), false),
                ConnectionCommand::None
            );
        }
    }
}
