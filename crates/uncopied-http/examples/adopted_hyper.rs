//! The hyper program of docs/adopting.md, after the change.

use std::io;

use http_body_util::{BodyExt, combinators::BoxBody};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::fs::File;
use tokio::net::TcpListener;
use uncopied_http::{FileBody, Stream};

async fn respond(_: Request<Incoming>) -> io::Result<Response<BoxBody<Bytes, io::Error>>> {
    let file = File::open("video.mp4").await?;
    let body = FileBody::open(file, ..).await?;
    Ok(Response::new(body.boxed()))
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    loop {
        let (socket, _) = listener.accept().await?;
        let io = TokioIo::new(Stream::from(socket));
        tokio::spawn(http1::Builder::new().serve_connection(io, service_fn(respond)));
    }
}
