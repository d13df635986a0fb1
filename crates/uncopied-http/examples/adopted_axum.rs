//! The axum program of docs/adopting.md, after the change.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::fs::File;
use uncopied_http::{FileBody, Listener, ServeFiles};

async fn video(peer: ConnectInfo<SocketAddr>) -> Result<impl IntoResponse, StatusCode> {
    println!("{} watches", peer.0);
    let file = File::open("video.mp4").await.map_err(not_found)?;
    FileBody::open(file, ..).await.map_err(not_found)
}

fn not_found(_: io::Error) -> StatusCode {
    StatusCode::NOT_FOUND
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let app = Router::new()
        .route("/video", get(video))
        .fallback_service(ServeFiles::new("public")?)
        .into_make_service_with_connect_info::<SocketAddr>();
    let listener = Listener::bind("127.0.0.1:3000").await?.tcp_only()?;
    axum::serve(listener, app).await
}
