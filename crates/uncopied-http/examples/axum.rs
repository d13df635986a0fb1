//! An ordinary axum app. Only the listener and the file service are uncopied's: the files go out by
//! sendfile, everything else as ever.
//!
//! `cargo run -p uncopied-http --example axum -- DIR [ADDRESS]`, then `curl http://127.0.0.1:3000/`.

use axum::Router;
use axum::routing::get;
use tower_http::compression::CompressionLayer;
use uncopied_http::{Listener, ServeFiles};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().unwrap_or_else(|| ".".to_owned());
    let address = arguments
        .next()
        .unwrap_or_else(|| "127.0.0.1:3000".to_owned());

    let app = Router::new()
        .route("/hello", get(|| async { "Hello!\n" }))
        // This one's bytes pass through the compressor: they are read, and the answer is still right.
        .nest_service("/compressed", ServeFiles::new(&dir)?)
        .layer(CompressionLayer::new())
        .fallback_service(ServeFiles::builder(&dir).listing(true).build()?);

    let listener = Listener::bind(&address).await?;
    println!("http://{}", listener.local_addr()?);
    axum::serve(listener, app).await
}
