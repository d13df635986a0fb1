//! A server that does what a test says, byte by byte.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::client::TEST_TIMEOUT;

/// What a script does with one request.
pub(crate) enum Then {
    KeepAlive,
    Close,
}

/// A running server. Dropping it stops it from accepting connections.
pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
    is_stopped: Arc<AtomicBool>,
}

impl Scripted {
    /// Starts a server that passes each request, with its number, to `script`.
    pub(crate) fn start(
        script: impl Fn(&str, &mut TcpStream, usize) -> Then + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            heads: Arc::default(),
            connections: Arc::default(),
            is_stopped: Arc::default(),
        };
        let (heads, connections) = (Arc::clone(&server.heads), Arc::clone(&server.connections));
        let is_stopped = Arc::clone(&server.is_stopped);
        let script = Arc::new(script);
        thread::spawn(move || {
            for socket in listener.incoming() {
                if is_stopped.load(Ordering::SeqCst) {
                    return;
                }
                connections.fetch_add(1, Ordering::SeqCst);
                let (heads, script) = (Arc::clone(&heads), Arc::clone(&script));
                thread::spawn(move || serve(socket.unwrap(), &heads, &*script));
            }
        });
        server
    }

    /// Starts a server that sends the same bytes to each request, and closes the connection.
    pub(crate) fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::start(move |_, socket, _| {
            let _ = socket.write_all(&bytes);
            Then::Close
        })
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// Returns the heads of all requests.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    mut socket: TcpStream,
    heads: &Mutex<Vec<String>>,
    script: &(dyn Fn(&str, &mut TcpStream, usize) -> Then + Send + Sync),
) {
    socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    while let Some(head) = read_head(&mut socket) {
        let number = {
            let mut heads = heads.lock().unwrap();
            heads.push(head.clone());
            heads.len() - 1
        };
        if let Then::Close = script(&head, &mut socket, number) {
            return;
        }
    }
}

fn read_head(socket: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match socket.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    Some(String::from_utf8(head).unwrap())
}

/// Returns the value of a header of a request.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (own, value) = line.split_once(": ")?;
        own.eq_ignore_ascii_case(name).then_some(value)
    })
}

/// A version of a file, served with ranges and `If-Range`.
pub(crate) struct Version {
    pub(crate) data: Vec<u8>,
    pub(crate) tag: &'static str,
}

impl Version {
    /// Returns the head of the response to a request, and its body.
    pub(crate) fn response(&self, head: &str) -> (String, &[u8]) {
        let len = self.data.len();
        let is_same = header(head, "if-range").is_none_or(|tag| tag == self.tag);
        let range = header(head, "range").filter(|_| is_same);
        let Some(range) = range.and_then(|range| range.strip_prefix("bytes=")) else {
            let tag = self.tag;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\nETag: {tag}\r\n\r\n");
            return (head, &self.data);
        };
        let (first, last) = range.split_once('-').unwrap();
        let first: usize = first.parse().unwrap();
        let end = last.parse().map_or(len, |last: usize| len.min(last + 1));
        if first >= end {
            let head = format!(
                "HTTP/1.1 416 No\r\nContent-Range: bytes */{len}\r\nContent-Length: 0\r\n\r\n"
            );
            return (head, &[]);
        }
        let head = format!(
            "HTTP/1.1 206 Part\r\nContent-Range: bytes {first}-{}/{len}\r\n\
             Content-Length: {}\r\nETag: {}\r\n\r\n",
            end - 1,
            end - first,
            self.tag
        );
        (head, &self.data[first..end])
    }

    /// Responds to a request. A short body arrives together with its head.
    pub(crate) fn send(&self, head: &str, socket: &mut TcpStream) -> Then {
        let (response, body) = self.response(head);
        let body = if head.starts_with("HEAD ") { &[] } else { body };
        match socket.write_all(&[response.as_bytes(), body].concat()) {
            Ok(()) => Then::KeepAlive,
            Err(_) => Then::Close,
        }
    }
}
