//! Responds to HTTP requests for the metrics. One request per connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::commands::relay::listener::name_of;
use crate::error::{Error, kernel_text};
use crate::flags::{ListenAddress, SocketMode};
use crate::server::listening::{ACCEPT_BACKOFF, BoundListener, DuplicateListener, bind};
use crate::server::warning::{WarningKind, warn_limited};

use super::Observed;
use super::text::text;

/// The maximum size of the head of a request.
const MAX_HEAD_BYTES: usize = 8 << 10;
/// The maximum number of requests at a time. Further clients wait in the kernel's queue.
const MAX_REQUESTS: usize = 16;
/// The maximum time for one request, from the accept until the client has closed the connection.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum number of bytes of a request's body that are read and dropped.
const MAX_DROPPED_BYTES: usize = 64 << 10;

/// The listening socket for metrics.
pub(in crate::commands::relay) struct MetricsServer {
    /// Owns the file of a Unix socket.
    socket: BoundListener,
    listener: MetricsListener,
}

enum MetricsListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl MetricsServer {
    /// Listens on an address. Must be called within a tokio runtime.
    pub(in crate::commands::relay) fn bind(
        address: &ListenAddress,
        mode: Option<SocketMode>,
    ) -> Result<Self, Error> {
        let socket = bind(address, "--metrics", mode, false)?;
        let listener = register(&socket).map_err(Error::setup("watch the socket for metrics"))?;
        Ok(Self { socket, listener })
    }

    /// Returns where the metrics are, as text.
    pub(in crate::commands::relay) fn url(&self) -> String {
        let name = name_of(&self.socket);
        match &self.listener {
            MetricsListener::Tcp(_) => format!("http://{name}/metrics"),
            MetricsListener::Unix(_) => name,
        }
    }

    /// Starts a task that serves the metrics for as long as the runtime exists.
    pub(in crate::commands::relay) fn start(self, observed: Observed) {
        tokio::spawn(self.serve(Arc::new(observed)));
    }

    async fn serve(self, observed: Arc<Observed>) {
        let permits = Arc::new(Semaphore::new(MAX_REQUESTS));
        loop {
            // The semaphore is never closed.
            let permit = Arc::clone(&permits).acquire_owned().await;
            let observed = Arc::clone(&observed);
            let accepted = match &self.listener {
                MetricsListener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    tokio::spawn(async move {
                        let _permit = permit;
                        respond(stream, &observed).await;
                    });
                }),
                MetricsListener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                    tokio::spawn(async move {
                        let _permit = permit;
                        respond(stream, &observed).await;
                    });
                }),
            };
            if let Err(error) = accepted {
                warn_of_failed_accept(&error);
                sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

fn warn_of_failed_accept(error: &io::Error) {
    let text = kernel_text(error);
    let message = format_args!("cannot accept connections for metrics: {text}");
    warn_limited(WarningKind::Accept, &message);
}

fn register(socket: &BoundListener) -> io::Result<MetricsListener> {
    Ok(match socket.duplicate()? {
        DuplicateListener::Tcp(socket) => {
            socket.set_nonblocking(true)?;
            MetricsListener::Tcp(TcpListener::from_std(socket)?)
        }
        DuplicateListener::Unix(socket) => {
            socket.set_nonblocking(true)?;
            MetricsListener::Unix(UnixListener::from_std(socket)?)
        }
    })
}

/// Responds to one request. Ignores errors, which concern only this client.
async fn respond(mut stream: impl AsyncRead + AsyncWrite + Unpin, observed: &Observed) {
    let exchange = async {
        let head = read_head(&mut stream).await?;
        let response = response_to(&head, || text(observed));
        stream.write_all(&response).await?;
        stream.shutdown().await?;
        // If the socket were closed while bytes are unread, the kernel would reset the connection,
        // and the client might lose the response.
        let mut dropped = [0; 1024];
        for _ in 0..MAX_DROPPED_BYTES / dropped.len() {
            if stream.read(&mut dropped).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    let _ = timeout(REQUEST_TIMEOUT, exchange).await;
}

/// Reads up to the end of the head, or to the end of the stream, or to the limit.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while memchr::memmem::find(&head, b"\r\n\r\n").is_none() && head.len() < MAX_HEAD_BYTES {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    Ok(head)
}

/// Returns the response to a request. Calls `metrics` only if they were asked for.
fn response_to(head: &[u8], metrics: impl FnOnce() -> String) -> Vec<u8> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let is_complete = request.parse(head).is_ok_and(|status| status.is_complete());
    let (method, target) = (request.method, request.path.unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default();
    let (status, body) = match method {
        _ if !is_complete => ("400 Bad Request", "not a request\n".to_owned()),
        Some("GET" | "HEAD") if path == "/metrics" => ("200 OK", metrics()),
        Some("GET" | "HEAD") => ("404 Not Found", "the metrics are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "use GET\n".to_owned()),
    };
    let allow = match status {
        "405 Method Not Allowed" => "allow: GET, HEAD\r\n",
        _ => "",
    };
    let length = body.len();
    let body = if method == Some("HEAD") { "" } else { &body };
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n\
         content-length: {length}\r\n{allow}connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_the_metrics_are_served() {
        let response = |head: &str| {
            let response = response_to(head.as_bytes(), || "a 1\n".to_owned());
            String::from_utf8(response).unwrap()
        };
        let status = |head: &str| response(head)[9..12].parse::<u16>().unwrap();
        let page = response("GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n");
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
        assert!(page.contains("\r\ncontent-length: 4\r\n"), "{page}");
        assert!(page.ends_with("\r\n\r\na 1\n"), "{page}");
        let head = response("HEAD /metrics?x HTTP/1.1\r\n\r\n");
        assert!(head.contains("\r\ncontent-length: 4\r\n"), "{head}");
        assert!(head.ends_with("\r\n\r\n"), "{head}");
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), 404);
        assert_eq!(status("POST /metrics HTTP/1.1\r\n\r\n"), 405);
        assert_eq!(status("GET /metrics HTTP/1.1\r\n"), 400);
        assert_eq!(status("\x16\x03\x01\r\n\r\n"), 400);
        assert_eq!(status(""), 400);
    }
}
