//! The API for sending a file or memory to a socket.

mod channel;
mod ext;
mod file;
mod options;
mod sender;
mod sent;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;

pub use channel::Channel;
pub use ext::StreamSocketExt;
pub use file::{SendFile, send_file};
pub use options::SendOptions;
pub use sender::Sender;
pub use sent::Sent;
