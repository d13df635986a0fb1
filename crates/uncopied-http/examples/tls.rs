//! TLS over our stream, with rustls. The connection works like any other. But encryption reads the
//! bytes, so bodies read their files into memory, as they would without this crate.
//!
//!     cargo run -p uncopied-http --example tls

use std::error::Error;
use std::io;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use uncopied_http::{ServeFiles, Stream};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let certificate = pair.cert.der().clone();
    let key = pair.signing_key.serialize_der().try_into()?;
    let server = ServerConfig::builder().with_no_client_auth();
    let acceptor = TlsAcceptor::from(Arc::new(
        server.with_single_cert(vec![certificate.clone()], key)?,
    ));
    let mut trusted = RootCertStore::empty();
    trusted.add(certificate)?;
    let client = ClientConfig::builder().with_root_certificates(trusted);
    let connector = TlsConnector::from(Arc::new(client.with_no_client_auth()));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let socket = TcpStream::connect(listener.local_addr()?).await?;
    let stream = Stream::from(listener.accept().await?.0);
    let service = TowerToHyperService::new(ServeFiles::new(".")?);
    tokio::spawn(async move {
        let io = TokioIo::new(acceptor.accept(stream).await?);
        let http = http1::Builder::new().serve_connection(io, service);
        http.await.map_err(io::Error::other)
    });

    let mut stream = connector.connect("localhost".try_into()?, socket).await?;
    let request = b"GET /Cargo.toml HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    println!("{response}");
    Ok(())
}
