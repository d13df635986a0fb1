//! Files by `sendfile`, and memory without a copy, under an unmodified hyper or axum.
//!
//! ```text
//! ServeFiles --> FileBody --> Bytes in the arena --> hyper, axum, layers --> &[u8] --> Stream
//! PageBuffer ------------------^                                                         |
//!                                                                         whose address? |
//!                                            a mapped file: sendfile(file, offset, n) <--+
//!                                            frozen pages: a zero-copy send           <--+
//!                                            anywhere else: an ordinary write         <--+
//! ```
//!
//! hyper passes only byte slices to its I/O layer. But a slice has an address, and the bodies of
//! this crate are slices of mapped files at addresses that identify the file. The [`Stream`] looks
//! each slice up and sends the file instead. Neither hyper nor axum needs to know. The same goes
//! for a `Bytes` made of [pages of the arena](uncopied::arena::PageBuffer), which any handler may
//! return:
//!
//! ```
//! use axum::{Router, routing::get};
//! use bytes::Bytes;
//! use uncopied::arena::PageBuffer;
//!
//! # fn app() -> std::io::Result<Router> {
//! let mut buffer = PageBuffer::zeroed(8 << 20)?;
//! buffer[..5].copy_from_slice(b"hello");
//! // Sent many times, never written to again.
//! let pages = Bytes::from(buffer.freeze_permanently());
//! let app = Router::new().route("/pages", get(|| async { pages }));
//! # Ok(app)
//! # }
//! ```
//!
//! An axum app needs two things from this crate, the [`Listener`] and the [`ServeFiles`] service:
//!
//! ```no_run
//! use axum::{Router, routing::get};
//! use uncopied_http::{Listener, ServeFiles};
//!
//! # async fn run() -> std::io::Result<()> {
//! let app: Router = Router::new()
//!     .route("/hello", get(|| async { "hello" }))
//!     .fallback_service(ServeFiles::new("public")?);
//! axum::serve(Listener::bind("127.0.0.1:8080").await?, app).await
//! # }
//! ```
//!
//! With hyper alone, wrap the stream that [`Listener::accept`] returns in hyper-util's `TokioIo`
//! and serve it like any other connection.
//!
//! # When there is no gain
//!
//! Behind another I/O object (TLS in user space, tokio's own `TcpStream`), or through a layer that
//! reads the bytes (compression), a body detects that its addresses are not looked up, and reads
//! the file instead: the responses are the same, and the bytes are copied. See [`FileBody`].
//!
//! # Features
//!
//! - `axum` (on by default): `axum::serve` accepts the [`Listener`], and [`Address`] is its connect
//!   info.
#![forbid(unsafe_code)]

mod activity;
mod body;
mod file_stat;
mod listener;
mod open_file;
mod options;
mod serve_files;
mod stream;
mod totals;

pub use activity::{Activity, Phase};
pub use body::{Basis, BodyPart, FileBody};
pub use file_stat::FileStat;
pub use listener::{Address, Listener};
pub use open_file::{DiskAccess, IN_MEMORY_FILE_MAX_BYTES, OpenFile};
pub use options::StreamOptions;
pub use serve_files::{Check, ResponseFuture, ServeFiles, ServeFilesBuilder};
pub use stream::Stream;
pub use totals::Totals;

#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
