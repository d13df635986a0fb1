//! An ordinary axum app that uses three things from uncopied: the listener, the file service, and
//! pages of the arena. Files are sent with `sendfile` (small ones from memory), 8 MiB of pages are
//! sent without copying, and everything else is sent as usual.
//!
//!     cargo run -p uncopied-http --example axum -- DIR [ADDRESS]
//!     curl http://127.0.0.1:3000/

use std::io::Write;

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use tower_http::compression::CompressionLayer;
use uncopied::arena::PageBuffer;
use uncopied_http::{Listener, ServeFiles};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().unwrap_or_else(|| ".".to_owned());
    let address = arguments
        .next()
        .unwrap_or_else(|| "127.0.0.1:3000".to_owned());

    // The pages are filled once, never written to again, and sent many times.
    let mut buffer = PageBuffer::with_capacity(8 << 20)?;
    while buffer.write(b"All work and no copy makes Jack a fast server.\n")? > 0 {}
    let pages = Bytes::from(buffer.freeze_permanently());

    let app = Router::new()
        .route("/hello", get(|| async { "Hello!\n" }))
        // Files below this path cannot be sent with `sendfile`, because the compressor reads their
        // bytes. The service detects that and reads the files into memory.
        .nest_service("/compressed", ServeFiles::new(&dir)?)
        .layer(CompressionLayer::new())
        .route("/pages", get(|| async { pages }))
        .fallback_service(ServeFiles::builder(&dir).listing(true).build()?);

    let listener = Listener::bind(&address).await?;
    println!("http://{}", listener.local_addr()?);
    axum::serve(listener, app).await
}
