//! Serves a directory, or one file, as a `tower` service.
//!
//! A request passes through these modules:
//!
//! 1. `service` responds at once, or hands the request to the blocking pool.
//! 2. `respond` checks the method, the preconditions and the ranges, and makes the response.
//! 3. `site` finds the file that the request path leads to.
//! 4. `cache` keeps open files and their headers between requests.
//! 5. `resolve` opens the path beneath the root, if the file is not in the cache.
//!
//! `current_site` keeps the site, and replaces it when the path of the root leads elsewhere.
//! `request` parses header fields. `request` and `resolve::path` do no I/O.

mod builder;
mod cache;
mod config;
mod current_site;
mod fallback;
mod file_response;
mod generated;
mod listing;
mod mounted;
mod multipart;
mod request;
mod resolve;
mod respond;
mod service;
mod site;

pub use self::builder::ServeFilesBuilder;
pub use self::config::EntityTags;
pub use self::current_site::RootChange;
pub use self::fallback::{FallbackFuture, FileOrFallbackBody, ServeFilesOr};
pub use self::file_response::FileResponse;
pub use self::request::fields::RequestFields;
pub use self::respond::{NeedsDisk, RequestTarget};
pub use self::service::{CachedFile, ResponseFuture, ServeFiles};
