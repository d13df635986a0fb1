//! The API for receiving from a socket into memory.

mod chunk;
mod obstacle;
mod options;
mod page_payload;
mod receiver;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;
pub mod zcrx;

pub use chunk::Chunk;
pub use obstacle::MapObstacle;
pub use options::ReceiveOptions;
pub use page_payload::PagePayload;
pub use receiver::Receiver;
