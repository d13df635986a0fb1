//! The state machines that run a plan: one fallback engine, and one file for each direction.

mod any;
mod descriptor_to_descriptor;
mod fallback;
mod file_to_socket;
mod memory_to_socket;
mod socket_to_file;
mod socket_to_memory;
mod socket_to_socket;

pub(crate) use any::AnyTransfer;
pub(crate) use descriptor_to_descriptor::DescriptorTransfer;
pub use file_to_socket::{Progress, Transfer};
pub(crate) use memory_to_socket::{MemoryProgress, MemoryTransfer};
pub use socket_to_file::ReceiveTransfer;
pub(crate) use socket_to_memory::{ChunkProgress, ChunkTransfer};
pub use socket_to_socket::RelayTransfer;
