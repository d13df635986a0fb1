//! Enforces deadlines without a timer per connection.
//!
//! A timer per connection would have to be armed and disarmed for every request. Instead, a
//! connection only records what it waits for, and since when ([`ConnectionState`]). The
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
//! A peer is reading if the socket accepts more bytes, or if fewer bytes are in the socket's queue
//! than at the last sweep. The socket alone would not tell: its buffer holds up to 4 MiB by
//! default, and it becomes writable again only once a third of the buffer is free, which may take a
//! slow but healthy peer minutes. Each sweep therefore asks the connections that wait for their
//! peers to look at their queues. `TCP_USER_TIMEOUT` would not do: it cuts peers that read slowly,
//! because it counts from the moment at which their window was first full.
//!
//! *Abort* drops the connection. *Drain* closes it once no request is in progress: immediately if
//! it is idle, otherwise after the current response. If an idle connection is told to drain because
//! of `--keepalive-timeout`, and is still open at the next sweep, it is aborted.
//!
//! [`ConnectionState`]: crate::commands::serve::connection::ConnectionState

use std::time::{Duration, Instant};

use crate::commands::serve::connection::{ConnectionState, Phase};
use crate::server::connections::{ConnectionCommand, ConnectionTable};

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
    pub(crate) fn sweep(
        &self,
        connections: &ConnectionTable<ConnectionState>,
        now: Instant,
        is_draining: bool,
    ) {
        connections.for_each(|connection: &ConnectionState| {
            let snapshot = ConnectionSnapshot {
                phase: connection.phase(),
                has_received_request: connection.has_received_request(),
                command: connection.command(),
                age: now.saturating_duration_since(connection.accepted),
                time_in_phase: connection.time_in_phase(),
            };
            match self.command_for(&snapshot, is_draining) {
                ConnectionCommand::None => {}
                command => connection.send(command),
            }
            if snapshot.phase == Phase::Sending {
                connection.request_look();
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
            Phase::Head => is_past(time_in_phase, self.head),
            Phase::Sending => is_past(time_in_phase, self.send),
            // While a connection closes, its task enforces limits of its own.
            Phase::Responding | Phase::Closing => false,
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
        ConnectionSnapshot {
            phase,
            has_received_request,
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
                connection(Phase::Responding, true, 999, 999),
                ConnectionCommand::None,
            ),
            (
                connection(Phase::Responding, true, 1000, 0),
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
        for phase in [
            Phase::Idle,
            Phase::Head,
            Phase::Sending,
            Phase::Responding,
            Phase::Closing,
        ] {
            assert_eq!(
                disabled.command_for(&connection(phase, false, 9999, 9999), false),
                ConnectionCommand::None
            );
        }
    }
}
