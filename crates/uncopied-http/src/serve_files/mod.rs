//! A directory, or one file, as a `tower` service.
//!
//! A request passes through `service` (now, or on the blocking pool) → `respond` (method,
//! preconditions, range, response) → `site` (the file that its path leads to) → `cache` (open
//! files and their headers), or `resolve` (opens a path beneath the root). `request` parses header
//! fields. It and `resolve::path` are pure, and do no I/O.

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
