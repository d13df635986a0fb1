//! Sends files with `sendfile`, and memory without a copy, under an unmodified hyper or axum.
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
//! hyper passes only byte slices to its I/O layer. But every slice has an address, and the bodies
//! of this crate are slices of mapped files, so their addresses identify a file and a position in
//! it. The [`Stream`] looks up the address of each slice that it is asked to write. If the slice
//! belongs to a mapped file, the stream sends the bytes from the file instead. Neither hyper nor
//! axum needs to know. The same works for a `Bytes` made of [pages of the
//! arena](uncopied::arena::PageBuffer), which any handler may return:
//!
//! ```
//! use axum::{Router, routing::get};
//! use bytes::Bytes;
//! use uncopied::arena::PageBuffer;
//!
//! # fn app() -> std::io::Result<Router> {
//! let mut buffer = PageBuffer::zeroed(8 << 20)?;
//! buffer[..5].copy_from_slice(b"hello");
//! // From now on, the pages can be sent any number of times, but never written to again.
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
//! and serve it like any other connection. If the program accepts connections itself, make the
//! stream with `Stream::from(socket)`.
//!
//! To send a file that the program has opened, make a body of it with [`FileBody::open`]. An axum
//! handler can return that body:
//!
//! ```
//! use axum::http::StatusCode;
//! use uncopied_http::FileBody;
//!
//! async fn video() -> Result<FileBody, StatusCode> {
//!     let not_found = |_| StatusCode::NOT_FOUND;
//!     let file = tokio::fs::File::open("video.mp4").await.map_err(not_found)?;
//!     FileBody::open(file, ..).await.map_err(not_found)
//! }
//! # let _: axum::Router = axum::Router::new().route("/video", axum::routing::get(video));
//! ```
//!
//! [Adopting uncopied in an existing program][adopting] shows the changes to a hyper program and to
//! an axum program, and how to adopt this crate in a program that also runs on other platforms.
//!
//! [adopting]: https://github.com/uncopied/uncopied/blob/main/docs/adopting.md
//!
//! # When there is no gain
//!
//! If the connection is another I/O object (TLS in user space, tokio's own `TcpStream`), or if a
//! layer reads the bytes (compression), the addresses of the body's slices never reach a
//! [`Stream`]. A body detects this and reads the file into memory instead. The responses are the
//! same, but their bytes are copied. See [`FileBody`]. The same happens where `userfaultfd(2)` is
//! forbidden, as by the default seccomp profile of Docker: see
//! [`FileMapping`](uncopied::arena::FileMapping).
//!
//! # Features
//!
//! - `axum` (on by default): implements axum's traits, so that `axum::serve` accepts the
//!   [`Listener`], handlers can extract the peer's [`Address`] or `SocketAddr` as connect info, and
//!   handlers can return a [`FileBody`].
//! - `serve-files` (on by default): the [`ServeFiles`] service. Without this feature, the crate
//!   consists of [`Stream`], [`Listener`] and [`FileBody`], and has fewer dependencies.
// Without the feature, links to `ServeFiles` in the documentation above lead to docs.rs.
#![cfg_attr(not(feature = "serve-files"), doc = "")]
#![cfg_attr(
    not(feature = "serve-files"),
    doc = " [`ServeFiles`]: https://docs.rs/uncopied-http/latest/uncopied_http/struct.ServeFiles.html"
)]
#![forbid(unsafe_code)]
// docs.rs shows which feature each item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(target_os = "linux"))]
compile_error!(
    "uncopied-http works on Linux only; depend on it with \
     [target.'cfg(target_os = \"linux\")'.dependencies]"
);

mod address;
#[cfg(feature = "axum")]
mod axum_impls;
mod body;
mod file_source;
mod file_stat;
mod frame_watch;
mod listener;
mod open_file;
mod options;
#[cfg(feature = "serve-files")]
mod serve_files;
mod stream;
mod totals;

pub use address::Address;
#[cfg(feature = "axum")]
pub use axum_impls::{TcpOnly, TcpOnlyListener};
pub use body::{BodyPart, FileBody};
pub use file_source::FileSource;
pub use file_stat::FileStat;
pub use listener::Listener;
pub use open_file::{IN_MEMORY_FILE_MAX_BYTES, OpenFile};
pub use options::StreamOptions;
#[cfg(feature = "serve-files")]
pub use serve_files::{
    CachedFile, EntityTags, FallbackFuture, FileOrFallbackBody, FileResponse, NeedsDisk,
    RequestFields, RequestTarget, ResponseFuture, RootChange, ServeFiles, ServeFilesBuilder,
    ServeFilesOr,
};
pub use stream::{CORKED_FILE_MIN_BYTES, ConnectionSocket, Stream};
pub use totals::Totals;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(doctest)]
#[doc = include_str!("../../../docs/adopting.md")]
struct Adopting;
