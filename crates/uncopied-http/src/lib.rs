//! Files by `sendfile` under an unmodified hyper or axum.
#![forbid(unsafe_code)]

mod activity;
mod body;
mod file;
mod listener;
mod serve_files;
mod stream;
mod totals;
mod watch;

pub use activity::{Activity, Phase};
pub use body::{FileBody, Part};
pub use file::{Facts, OpenFile, SMALL, Wait};
pub use listener::{Address, Listener};
pub use serve_files::{ResponseFuture, ServeFiles, ServeFilesBuilder};
pub use stream::{Options, Stream};
pub use totals::Totals;

#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
