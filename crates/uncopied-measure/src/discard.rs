//! A receiver that takes bytes from a socket without reading them.
//!
//! A receiver has to use less CPU time than any sender that it serves: otherwise it would be the
//! bottleneck, and the receiver would be measured. So it discards bytes inside the kernel
//! (`MSG_TRUNC`, `tcp(7)`): copying them to user space would cost the receiver more than sending
//! costs a zero-copy sender.

use std::io;
use std::os::fd::AsFd;

use rustix::net::RecvFlags;

/// Maximum number of bytes that one call takes.
const RECEIVE_BYTES: usize = 1024 * 1024;

/// Discards what TCP sockets receive.
pub struct Discarder {
    /// The kernel wants an address and a length, but writes nothing there.
    buffer: Vec<u8>,
}

impl Discarder {
    /// Returns a receiver for any number of sockets.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buffer: vec![0; RECEIVE_BYTES],
        }
    }

    /// Takes at most 1 MiB from the socket. Returns the number of bytes, which is 0 at the end of
    /// the stream. Waits as `recv(2)` does.
    ///
    /// # Errors
    ///
    /// Those of `recv(2)`, `EAGAIN` and `EINTR` among them.
    pub fn discard(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let (_, received) = rustix::net::recv(socket, &mut *self.buffer, RecvFlags::TRUNC)?;
        Ok(received)
    }

    /// Memory of 1 MiB, for a caller that does read some of the bytes.
    pub fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }
}

impl Default for Discarder {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn bytes_are_taken_and_not_written() -> Result<(), Error> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let mut peer = TcpStream::connect(listener.local_addr()?)?;
        let stream = listener.accept()?.0;
        peer.write_all(&[7; 5000])?;
        drop(peer);
        let mut discarder = Discarder::new();
        let mut taken = 0;
        loop {
            match discarder.discard(&stream)? {
                0 => break,
                bytes => taken += bytes,
            }
        }
        assert_eq!(taken, 5000);
        assert!(discarder.buffer().iter().all(|&byte| byte == 0));
        Ok(())
    }
}
