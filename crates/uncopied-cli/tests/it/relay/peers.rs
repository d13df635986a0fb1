//! Servers to which the tests relay.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use crate::client::TEST_TIMEOUT;

/// The number of connections that wait for a server to accept them, at most.
const MAX_QUEUED: i32 = 4096;

/// A server whose connections the test handles itself.
pub(super) struct Target {
    pub(super) address: SocketAddr,
    accepted: Receiver<TcpStream>,
}

impl Target {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, accepted) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
                if sender.send(stream).is_err() {
                    return;
                }
            }
        });
        Self { address, accepted }
    }

    /// Returns the next connection.
    pub(super) fn accept(&self) -> TcpStream {
        self.accepted.recv_timeout(TEST_TIMEOUT).unwrap()
    }
}

/// Starts a server that calls `handle` for each connection, on a thread of its own.
pub(super) fn serve(handle: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // The standard library has room for 128 connections. If a relay opens more before they are
    // accepted, the kernel uses SYN cookies, and resets those of which it has missed the first
    // segment, because the second one has no cookie.
    rustix::net::listen(&listener, MAX_QUEUED).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, handle) = (stream.unwrap(), handle.clone());
            thread::spawn(move || handle(stream));
        }
    });
    address
}

/// Starts a server that sends back what it receives.
pub(super) fn echo() -> SocketAddr {
    serve(|mut stream| {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..bytes]).is_err() {
                return;
            }
        }
    })
}

/// Starts a server that sends its name and closes the connection.
pub(super) fn named(name: &'static str) -> SocketAddr {
    serve(move |mut stream| {
        let _ = stream.write_all(name.as_bytes());
    })
}

/// Returns an address at which nothing listens.
pub(super) fn refusing() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}
