//! Memory that the kernel may still read: leases on it, limits, and how to learn that it is free.

mod acknowledgements;
mod completion;
mod error_queue;
mod lease;
pub(crate) mod reaper;
pub(crate) mod registry;

pub(crate) use acknowledgements::Acknowledgements;
pub use completion::{Completion, FreeReason, SendOutcome};
pub(crate) use completion::{NotificationSource, NotificationStats, SendPart, SendTracker};
pub(crate) use error_queue::{ErrorQueue, OrphanedErrorQueue, SentLease};
pub use lease::{
    DEFAULT_PROCESS_IN_FLIGHT_LIMIT, DEFAULT_SENDER_IN_FLIGHT_LIMIT, LimitAction, in_flight_bytes,
    set_process_in_flight_limit,
};
pub(crate) use lease::{Lease, Leases, Quota};
