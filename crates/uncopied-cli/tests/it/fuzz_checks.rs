//! What must hold for any bytes that a client sends. Used by the fuzz targets in `fuzz/`, and by
//! the test that replays their inputs.

use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

use http_body_util::Empty;
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use uncopied_cli::fuzz::{FuzzServer, ParsedHead, parse_head};

/// Runs the event loop of one check.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(future)
}

/// Whatever head the server accepts, hyper reads the same way.
pub(crate) fn check_head(bytes: &[u8]) {
    let Ok(Some(mut head)) = parse_head(bytes) else {
        return;
    };
    let request = block_on(read_by_hyper(&bytes[..head.length]));
    let request = request.unwrap_or_else(|| panic!("hyper refuses {}", bytes.escape_ascii()));
    let fields = std::mem::take(&mut head.fields);
    let fields = fields
        .into_iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value));
    head.fields = sorted(fields);
    assert_eq!(read_as(&request, &head), head, "{}", bytes.escape_ascii());
}

/// Returns a request as hyper has read it. Of a target without a path, only the method is compared.
fn read_as(request: &Request<Incoming>, ours: &ParsedHead) -> ParsedHead {
    let uri = request.uri();
    let has_path = ours.path != "*";
    let path = if has_path { uri.path() } else { &ours.path };
    let fields = request.headers().iter();
    let fields = fields.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
    ParsedHead {
        length: ours.length,
        method: request.method().to_string(),
        path: path.to_owned(),
        query: uri.query().filter(|_| has_path).map(str::to_owned),
        is_http_1_0: request.version() == Version::HTTP_10,
        has_body: !request.body().is_end_stream(),
        fields: sorted(fields),
    }
}

/// Sorts fields by their names. hyper, too, keeps only the order of those that have the same name.
fn sorted(fields: impl Iterator<Item = (String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<_> = fields.collect();
    fields.sort_by(|(name, _), (other, _)| name.cmp(other));
    fields
}

/// Returns the first request that hyper reads from these bytes.
async fn read_by_hyper(bytes: &[u8]) -> Option<Request<Incoming>> {
    let (mut client, server) = tokio::io::duplex(bytes.len().max(1));
    client.write_all(bytes).await.unwrap();
    let read = Arc::new(Mutex::new(None));
    let service = service_fn(|request: Request<Incoming>| {
        read.lock().unwrap().get_or_insert(request);
        std::future::ready(Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())))
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(server), service);
    // The connection ends with an error, because the client does not read. The request has been
    // read before that.
    drop(client);
    let _ = connection.await;
    read.lock().unwrap().take()
}

/// The server responds to each request that it accepts with one complete response, and then closes
/// the connection.
pub(crate) fn check_connection(directory: &Path, bytes: &[u8]) {
    let (server, mut client) = UnixStream::pair().unwrap();
    let sent = bytes.to_vec();
    let exchange = std::thread::spawn(move || {
        let mut write = client.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            // The server may close the connection before it has read everything.
            let _ = write.write_all(&sent);
            let _ = write.shutdown(Shutdown::Write);
        });
        let mut received = Vec::new();
        let end = client.read_to_end(&mut received);
        writer.join().unwrap();
        end.map(|_| received)
    });
    block_on(async {
        let files = FuzzServer::new(directory).unwrap();
        files.serve(server).await.unwrap();
    });
    let received = exchange.join().unwrap().unwrap();
    check_responses(bytes, &received);
}

/// Checks that `received` consists of complete responses to the requests in `sent`.
fn check_responses(mut sent: &[u8], mut received: &[u8]) {
    loop {
        let parsed = parse_head(sent);
        let request = match &parsed {
            // An incomplete head gets no response.
            Ok(None) => return assert!(received.is_empty(), "{}", received.escape_ascii()),
            Ok(Some(head)) => Some(head),
            Err(_) => None,
        };
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut fields);
        let length = response.parse(received).unwrap();
        assert!(
            length.is_complete(),
            "no response to {}",
            sent.escape_ascii()
        );
        let field = |name: &str| {
            let mut fields = response.headers.iter();
            let field = fields.find(|field| field.name.eq_ignore_ascii_case(name))?;
            str::from_utf8(field.value).ok()
        };
        let status = response.code.unwrap();
        let is_empty = matches!(status, 204 | 304) || request.is_some_and(|it| it.method == "HEAD");
        let body = match field("content-length") {
            Some(length) if !is_empty => length.parse().unwrap(),
            _ => 0,
        };
        received = &received[length.unwrap() + body..];
        if field("connection") == Some("close") {
            return assert!(received.is_empty(), "{}", received.escape_ascii());
        }
        let head = request.expect("the connection is closed after a refused head");
        assert!(!head.has_body, "the body might be read as a request");
        sent = &sent[head.length..];
    }
}
