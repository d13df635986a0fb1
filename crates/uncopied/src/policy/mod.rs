//! Policy: which mechanisms a transfer tries, and in which order.
//!
//! A [`Plan`] is a pure function of what is known about a transfer before it starts, and of the
//! thresholds of a [`Tuning`]. What the transfer then learns about the mechanisms is recorded in
//! [`Support`]. This is the only module that ranks mechanisms: the rest of the library, and the
//! crates that use it, rely on these plans. It does no I/O, except that it reads environment
//! variables, and the file that one of them names.

mod flow;
mod mechanism;
mod plan;
mod support;
mod switches;
mod tuning;

pub(crate) use flow::Flow;
pub use mechanism::{Direction, Mechanism, ParseMechanismError};
pub use plan::{
    CopyPlanInput, DescriptorKind, Driver, FilePlanInput, Length, MemoryPlanInput, Plan,
    ReceiveFilePlanInput, ReceivePlanInput, RelayPlanInput, SinkKind, SourceKind, WriteProtection,
    plan_copy, plan_file, plan_memory, plan_receive, plan_receive_file, plan_relay,
};
pub use support::Support;
pub use switches::{
    set_zero_copy_receive, set_zero_copy_send, zero_copy_receive_enabled, zero_copy_send_enabled,
};
pub(crate) use tuning::reaches;
pub use tuning::{Tuning, TuningError};
