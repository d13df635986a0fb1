//! The loopback connection over which trials send, and its receiving end.

use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::set_tcp_congestion;

use super::MeasureError;

/// A firewall that drops packets on loopback must not keep the caller waiting.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// The most bytes that one call receives.
const RECEIVE_BYTES: usize = 256 << 10;

/// Returns the two ends of a connection: the one that sends, and the one that receives.
pub(super) fn connect() -> Result<(TcpStream, TcpStream), MeasureError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .map_err(MeasureError::at("listen on 127.0.0.1"))?;
    // Every process may use this algorithm. The default of the machine may pace what it sends, for
    // which loopback has no reason. If it cannot be set, fewer repetitions fit into the time.
    let _ = set_tcp_congestion(&listener, "reno");
    let connect = || TcpStream::connect_timeout(&listener.local_addr()?, CONNECT_LIMIT);
    let peer = connect().map_err(MeasureError::at("connect to 127.0.0.1"))?;
    let socket = accept(&listener, &peer).map_err(MeasureError::at("accept a connection"))?;
    // Otherwise, the last bytes of a trial would wait for an acknowledgement that the peer delays.
    socket
        .set_nodelay(true)
        .map_err(MeasureError::at("set TCP_NODELAY"))?;
    Ok((socket, peer))
}

fn accept(listener: &TcpListener, peer: &TcpStream) -> io::Result<TcpStream> {
    let own = peer.local_addr()?;
    loop {
        // Another process may have connected first.
        let (socket, address) = listener.accept()?;
        if address == own {
            return Ok(socket);
        }
    }
}

/// How many bytes the peer has received.
#[derive(Debug, Default)]
pub(super) struct Received(AtomicU64);

/// The number that says that the peer receives no more.
const ENDED: u64 = u64::MAX;

impl Received {
    /// Waits until the peer has received `bytes`, which must have been sent. Fails if it has
    /// stopped.
    pub(super) fn wait_for(&self, bytes: u64) -> Result<(), MeasureError> {
        loop {
            match self.0.load(Ordering::Relaxed) {
                ENDED => {
                    let ended = io::Error::from(io::ErrorKind::ConnectionAborted);
                    return Err(MeasureError::at("receive")(ended));
                }
                received if received >= bytes => return Ok(()),
                _ => thread::yield_now(),
            }
        }
    }
}

/// Receives until the sender ends the stream, or until an error, and closes the socket.
pub(super) fn receive_all(mut socket: TcpStream, received: &Received) {
    let mut buffer = vec![0; RECEIVE_BYTES];
    let mut total = 0;
    loop {
        match socket.read(&mut buffer) {
            Ok(bytes @ 1..) => {
                total += bytes as u64;
                received.0.store(total, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
        }
    }
    received.0.store(ENDED, Ordering::Relaxed);
}
