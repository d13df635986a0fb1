//! A typical axum app: it uses state, the peer's address, compression, tracing, a fallback and
//! graceful shutdown. Only `Listener`, `ServeFiles`, `FileBody` and `OpenFile` are from uncopied.
//!
//! `cargo run -p uncopied-http --example axum_app`, then `curl http://127.0.0.1:3000/manifest`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use axum::routing::get;
use tower_http::compression::CompressionLayer;
use tower_http::trace::TraceLayer;
use uncopied_http::{FileBody, Listener, OpenFile, ServeFiles};

/// The state of the app: one open file, which all responses that send it share.
type Manifest = Arc<OpenFile>;

async fn manifest(State(file): State<Manifest>) -> Result<FileBody, StatusCode> {
    let body = FileBody::open(&file, ..).await;
    body.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

async fn whoami(ConnectInfo(peer): ConnectInfo<SocketAddr>) -> String {
    format!("{peer}\n")
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let manifest_file = tokio::fs::File::open("Cargo.toml").await?;
    let missing = Router::new().fallback(|| async { (StatusCode::NOT_FOUND, "No such page.\n") });
    let app = Router::new()
        .route("/whoami", get(whoami).layer(CompressionLayer::new()))
        .route("/manifest", get(manifest))
        .fallback_service(ServeFiles::new(".")?.fallback_service(missing))
        // This layer reads no bytes of a body, so files can still be sent with `sendfile`. Its
        // events are shown only if the program installs a subscriber of `tracing`.
        .layer(TraceLayer::new_for_http())
        .with_state(OpenFile::open(manifest_file).await?);

    let listener = Listener::bind("127.0.0.1:3000").await?.tcp_only()?;
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    let interrupted = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
    axum::serve(listener, app)
        .with_graceful_shutdown(interrupted)
        .await
}
