//! The state machines that run a plan: one fallback engine, and one file for each direction.

mod fallback;
mod file_to_socket;
mod memory_to_socket;

pub use file_to_socket::{Progress, Transfer};
pub(crate) use memory_to_socket::{MemoryProgress, MemoryTransfer};
