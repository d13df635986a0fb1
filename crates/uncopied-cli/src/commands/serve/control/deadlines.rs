//! Deadlines without timers.
//!
//! A timer for each connection costs every request: it is armed and disarmed twice. Here a
//! connection only notes what it waits for and since when (the stream's [`Activity`], two words that
//! it writes anyhow), and the control thread looks all connections through a few times within the
//! shortest deadline: every quarter of it, at least once a second, at most once in 50 ms. So a deadline
//! is met within a quarter of itself or a second, whichever is less, and costs nothing between.
//!
//! What is past which deadline:
//!
//! | the connection | counted from | deadline | then |
//! |---|---|---|---|
//! | has never sent a whole request head | the accept | `--header-timeout` | cut |
//! | has sent a part of a request head | its first byte | `--header-timeout` | cut |
//! | waits for our answer, which waits for the disk | - | none | - |
//! | sends an answer that the peer does not take | see below | `--send-timeout` | cut |
//! | is idle between two requests | the end of the last answer | `--keepalive-timeout` | finish |
//! | any | the accept | `--keepalive-time` | finish |
//!
//! Whether a peer takes an answer only the kernel sees: a socket's buffer holds up to 4 MiB, and is called
//! writable again when a third of it is free, which a slow but healthy peer may need minutes for. So on TCP
//! the deadline is the kernel's (`TCP_USER_TIMEOUT`): it runs from the last byte that the peer
//! acknowledged, or from when it shut its window. On a Unix socket, where bytes are taken by reading them, it
//! is kept here and runs from the last byte that the socket took.
//!
//! To *cut* is to drop the connection. To *finish* is to close it where no request is under way: at
//! once if it is idle, after the answer under way otherwise. One that is still idle at the look after
//! it was told to finish is cut.
//!
//! [`Activity`]: uncopied_http::Activity

use std::time::{Duration, Instant};

use uncopied_http::Phase;

use crate::commands::serve::connection::{Order, Seat, Table};

/// How long the peer may keep a connection waiting. `None` is no limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines {
    /// From the accept, or the first byte of a request, to the end of the request's head.
    pub(crate) head: Option<Duration>,
    /// Between two bytes that the peer takes of an answer.
    pub(crate) send: Option<Duration>,
    /// Between two requests.
    pub(crate) idle: Option<Duration>,
    /// From the accept to the last request.
    pub(crate) age: Option<Duration>,
    /// From the signal to finish until the rest is cut.
    pub(crate) grace: Duration,
}

/// While the server finishes, how long a connection that was accepted but has not begun a request
/// is waited for: its request may be on its way.
const FINISHING_PATIENCE: Duration = Duration::from_secs(1);

/// What is known of one connection at the time of a look.
#[derive(Debug)]
struct Facts {
    phase: Phase,
    has_requested: bool,
    /// A part of a request head has come, and not the whole.
    awaits_head: bool,
    /// The kernel keeps the deadline for sending.
    is_tcp: bool,
    order: Order,
    age: Duration,
    in_phase: Duration,
}

impl Deadlines {
    /// How long it is from one look to the next.
    pub(crate) fn tick(&self) -> Duration {
        let all = [self.head, self.send, self.idle, self.age];
        let shortest = all.into_iter().flatten().min().unwrap_or(Duration::MAX);
        (shortest / 4).clamp(Duration::from_millis(50), Duration::from_secs(1))
    }

    /// Looks through the connections of one thread and gives orders to those past a deadline.
    pub(crate) fn sweep(&self, table: &Table, now: Instant, is_finishing: bool) {
        table.for_each(|seat: &Seat| {
            let facts = Facts {
                phase: seat.phase(),
                has_requested: seat.has_requested(),
                awaits_head: seat.awaits_head(),
                is_tcp: seat.is_tcp,
                order: seat.order(),
                age: now.saturating_duration_since(seat.accepted),
                in_phase: now.saturating_duration_since(seat.activity.since()),
            };
            match self.judge(&facts, is_finishing) {
                Order::None => {}
                order => seat.give(order),
            }
        });
    }

    fn judge(&self, facts: &Facts, is_finishing: bool) -> Order {
        let past =
            |time: Duration, limit: Option<Duration>| limit.is_some_and(|limit| time >= limit);
        let is_over = match facts.phase {
            Phase::Idle if !facts.has_requested => {
                past(facts.age, self.head) || is_finishing && facts.age >= FINISHING_PATIENCE
            }
            Phase::Idle => past(facts.in_phase, self.idle) && facts.order == Order::Finish,
            // With the whole head there, the time is the disk's and not the peer's.
            Phase::Head => facts.awaits_head && past(facts.in_phase, self.head),
            Phase::Sending => !facts.is_tcp && past(facts.in_phase, self.send),
            Phase::Active => false,
        };
        let is_idle = matches!(facts.phase, Phase::Idle) && facts.has_requested;
        if is_over {
            Order::Cut
        } else if past(facts.age, self.age) || is_idle && past(facts.in_phase, self.idle) {
            Order::Finish
        } else {
            Order::None
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

    fn facts(phase: Phase, has_requested: bool, age: u32, in_phase: u32) -> Facts {
        let order = Order::None;
        let awaits_head = matches!(phase, Phase::Head);
        Facts {
            phase,
            has_requested,
            awaits_head,
            is_tcp: false,
            order,
            age: age * SECOND,
            in_phase: in_phase * SECOND,
        }
    }

    #[test]
    fn each_row_of_the_table_is_judged() {
        for (facts, order) in [
            (facts(Phase::Idle, false, 9, 9), Order::None),
            (facts(Phase::Idle, false, 10, 1), Order::Cut),
            (facts(Phase::Head, false, 10, 9), Order::None),
            (facts(Phase::Head, true, 500, 10), Order::Cut),
            (facts(Phase::Sending, true, 500, 19), Order::None),
            (facts(Phase::Sending, true, 500, 20), Order::Cut),
            (facts(Phase::Idle, true, 500, 29), Order::None),
            (facts(Phase::Idle, true, 500, 30), Order::Finish),
            (facts(Phase::Active, true, 999, 999), Order::None),
            (facts(Phase::Active, true, 1000, 0), Order::Finish),
            (facts(Phase::Sending, true, 1000, 20), Order::Cut),
        ] {
            assert_eq!(DEADLINES.judge(&facts, false), order, "{facts:?}");
        }
    }

    #[test]
    fn work_on_an_answer_has_no_deadline() {
        let working = Facts {
            awaits_head: false,
            ..facts(Phase::Head, true, 500, 400)
        };
        assert_eq!(DEADLINES.judge(&working, false), Order::None);
    }

    #[test]
    fn idle_after_the_order_to_finish_is_cut() {
        let asked = Facts {
            order: Order::Finish,
            ..facts(Phase::Idle, true, 500, 30)
        };
        assert_eq!(DEADLINES.judge(&asked, false), Order::Cut);
    }

    #[test]
    fn a_finishing_server_waits_only_a_moment_for_a_first_request() {
        assert_eq!(
            DEADLINES.judge(&facts(Phase::Idle, false, 0, 0), true),
            Order::None
        );
        assert_eq!(
            DEADLINES.judge(&facts(Phase::Idle, false, 1, 1), true),
            Order::Cut
        );
        assert_eq!(
            DEADLINES.judge(&facts(Phase::Head, false, 1, 1), true),
            Order::None
        );
    }

    #[test]
    fn what_is_switched_off_never_ends_a_connection() {
        let off = Deadlines {
            head: None,
            send: None,
            idle: None,
            age: None,
            ..DEADLINES
        };
        for phase in [Phase::Idle, Phase::Head, Phase::Sending, Phase::Active] {
            assert_eq!(
                off.judge(&facts(phase, false, 9999, 9999), false),
                Order::None
            );
        }
    }
}
