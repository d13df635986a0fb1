//! The API for sending a file or memory to a socket.

mod channel;
mod file;
mod options;
mod sender;
mod sent;

pub use channel::Channel;
pub use file::{SendFile, send_file};
pub use options::SendOptions;
pub use sender::{Sender, StreamSocket};
pub use sent::Sent;
