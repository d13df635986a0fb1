//! The API for receiving from a socket into memory, and into files.

mod chunk;
mod file;
mod obstacle;
mod options;
mod page_payload;
mod receiver;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;
pub mod zcrx;

pub use chunk::Chunk;
#[cfg(test)]
pub(crate) use file::reserve;
pub use file::{ReceiveFile, receive_file};
pub use obstacle::MapObstacle;
pub use options::ReceiveOptions;
pub use page_payload::PagePayload;
pub use receiver::Receiver;
