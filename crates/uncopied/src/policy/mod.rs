//! Policy: which mechanisms a transfer tries, and in which order.
//!
//! This module uses no descriptor and does no I/O. A [`Plan`] is a pure function of what is known
//! about a transfer before it starts. What the transfer then learns about the mechanisms is
//! recorded in [`Support`]. This is the only module that ranks mechanisms: the rest of the library,
//! and the crates that use it, rely on these plans.

mod flow;
mod mechanism;
mod plan;
mod support;
mod switches;

pub(crate) use flow::Flow;
pub use mechanism::{Direction, Mechanism, ParseMechanismError};
pub use plan::{
    CopyPlanInput, DescriptorKind, Driver, FilePlanInput, Length, MemoryPlanInput, Plan,
    ReceiveFilePlanInput, ReceivePlanInput, RelayPlanInput, SinkKind, SourceKind, plan_copy,
    plan_file, plan_memory, plan_receive, plan_receive_file, plan_relay,
};
pub use support::Support;
pub use switches::{
    set_zero_copy_receive, set_zero_copy_send, zero_copy_receive_enabled, zero_copy_send_enabled,
};
