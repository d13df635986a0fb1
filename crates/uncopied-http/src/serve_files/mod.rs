//! A directory, or one file, as a `tower` service.
//!
//! A request goes `path` (is it well-formed, may anybody see it) → `find` (from the `cache`, or
//! opened beneath the `root`) → `respond` (method, `conditional`, `range`, response). Four modules
//! are pure and know nothing of files: `path`, `conditional`, `range` and `negotiate`.

mod basis_check;
mod builder;
mod cache;
mod config;
mod listing;
mod multipart;
mod request;
mod resolve;
mod respond;
mod service;
mod site;

pub use self::basis_check::Check;
pub use self::builder::ServeFilesBuilder;
pub use self::service::{ResponseFuture, ServeFiles};
