//! Policy: which mechanisms a transfer tries, and in which order.
//!
//! Nothing in here touches a descriptor or does I/O. A [`Plan`] is a pure function of what is known
//! about a transfer; what its steps then find out goes to [`Support`]. No other part of the
//! library, and none of the crates above it, has an order of mechanisms of its own.

mod mechanism;
mod plan;
mod support;
mod switches;

pub use mechanism::{Direction, Mechanism};
pub use plan::{
    Driver, FilePlanInput, Length, MemoryPlanInput, Plan, SourceKind, plan_file, plan_memory,
};
pub use support::Support;
pub use switches::{set_zero_copy_send, zero_copy_send_enabled};
