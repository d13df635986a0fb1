//! Files by `sendfile` under an unmodified hyper or axum.

mod body;
mod file;

pub use body::{FileBody, Part};
pub use file::{Facts, OpenFile, Wait};
