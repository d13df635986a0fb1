//! Files by `sendfile` under an unmodified hyper or axum.

mod body;
mod file;
mod serve_files;

pub use body::{FileBody, Part};
pub use file::{Facts, OpenFile, Wait};
pub use serve_files::{ResponseFuture, ServeFiles, ServeFilesBuilder};
