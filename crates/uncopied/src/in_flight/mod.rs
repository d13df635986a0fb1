//! Tracks the memory that the kernel may still read: the leases that keep this memory allocated,
//! the limits on its size, and the notifications after which it can be reused.

mod acknowledgements;
mod completion;
mod ended_send;
mod error_queue;
mod lease;
mod limits;
mod notification_stats;
pub(crate) mod reaper;
pub(crate) mod registry;
mod socket_queue;
mod wakers;

pub(crate) use acknowledgements::Acknowledgements;
pub use completion::{Completion, FreeReason, SendOutcome};
pub(crate) use completion::{SendPart, SendTracker};
pub(crate) use ended_send::{EndedSend, complete_all};
pub(crate) use error_queue::{ErrorQueue, OrphanedErrorQueue, SentLease};
pub(crate) use lease::{Lease, Leases};
pub(crate) use limits::{BytesInFlight, Quota};
pub use limits::{
    DEFAULT_PROCESS_IN_FLIGHT_LIMIT, DEFAULT_SENDER_IN_FLIGHT_LIMIT, LimitAction, in_flight_bytes,
    set_process_in_flight_limit,
};
pub(crate) use notification_stats::NotificationStats;
pub(crate) use registry::NotificationSource;
pub(crate) use socket_queue::{OrphanedSocketQueue, SocketQueue};
