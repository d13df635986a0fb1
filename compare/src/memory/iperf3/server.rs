//! The part of the server side of iperf3's protocol that iperf3's client needs to send to our
//! receiver.
//!
//! First, the client opens a control connection and sends a cookie on it. On this connection,
//! client and server then exchange states, which are single bytes, and messages, each of which is
//! preceded by its length. The client opens a second connection, sends the same cookie, and then
//! sends the data on it. When the sending time is over, the client sends the state `TEST_END` on
//! the control connection, client and server exchange their results, and the client closes the
//! control connection.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use crate::error::{Context, Error};
use crate::loopback::wait::STALL_LIMIT;

/// Size of a cookie: 36 letters and digits, and a NUL.
const COOKIE_BYTES: usize = 37;

/// The maximum length of a message. The client's parameters and results take only about a kilobyte.
const MESSAGE_LIMIT_BYTES: usize = 1024 * 1024;

/// The states of the protocol, each sent as one byte.
mod state {
    pub(super) const TEST_START: u8 = 1;
    pub(super) const TEST_RUNNING: u8 = 2;
    pub(super) const TEST_END: u8 = 4;
    pub(super) const PARAM_EXCHANGE: u8 = 9;
    pub(super) const CREATE_STREAMS: u8 = 10;
    pub(super) const EXCHANGE_RESULTS: u8 = 13;
    pub(super) const DISPLAY_RESULTS: u8 = 14;
    pub(super) const IPERF_DONE: u8 = 16;
}

/// The control connection to a client that sends.
#[derive(Debug)]
pub(in crate::memory) struct Control(TcpStream);

impl Control {
    /// Accepts the two connections of a client, and follows the protocol until the client starts to
    /// send. Returns the connection on which the client sends, after reading the cookie from it,
    /// and the control connection.
    pub(in crate::memory) fn open(
        mut accept: impl FnMut() -> Result<TcpStream, Error>,
    ) -> Result<(TcpStream, Self), Error> {
        let control = accept()?;
        control
            .set_read_timeout(Some(STALL_LIMIT))
            .context(|| "cannot set up iperf3's connection".into())?;
        let mut control = Self(control);
        let cookie = read_cookie(&mut control.0)?;
        control.send_state(state::PARAM_EXCHANGE)?;
        // Ignore the parameters, because they only repeat the client's command line.
        control.read_message()?;
        control.send_state(state::CREATE_STREAMS)?;
        let mut stream = accept()?;
        if read_cookie(&mut stream)? != cookie {
            return Err(Error::WrongResult(
                "iperf3's two connections have different cookies".into(),
            ));
        }
        control.send_state(state::TEST_START)?;
        control.send_state(state::TEST_RUNNING)?;
        Ok((stream, control))
    }

    /// The connection, for waiting until it is readable.
    pub(in crate::memory) fn stream(&self) -> &TcpStream {
        &self.0
    }

    /// Reads a state from the client and responds to it. Returns false if the state says that the
    /// client is done.
    pub(in crate::memory) fn respond(&mut self, received_bytes: u64) -> Result<bool, Error> {
        let mut state = [0];
        self.read(&mut state)?;
        match state[0] {
            state::TEST_END => {
                self.send_state(state::EXCHANGE_RESULTS)?;
                self.read_message()?;
                self.send_results(received_bytes)?;
                self.send_state(state::DISPLAY_RESULTS)?;
                Ok(true)
            }
            state::IPERF_DONE => Ok(false),
            other => Err(Error::WrongResult(format!(
                "iperf3 sent the unexpected state {other}"
            ))),
        }
    }

    /// Sends the server's results, with all fields that the client requires. The client only prints
    /// the results, so every value but the number of bytes is a dummy.
    fn send_results(&mut self, received_bytes: u64) -> Result<(), Error> {
        let results = json!({
            "cpu_util_total": 0, "cpu_util_user": 0, "cpu_util_system": 0,
            "sender_has_retransmits": -1,
            "streams": [{
                "id": 1, "bytes": received_bytes, "retransmits": -1, "jitter": 0,
                "errors": 0, "packets": 0, "omitted_errors": 0, "omitted_packets": 0,
                "start_time": 0, "end_time": 0,
            }],
        });
        let text = results.to_string();
        let length = (text.len() as u32).to_be_bytes();
        self.write(&[&length, text.as_bytes()].concat())
    }

    fn send_state(&mut self, state: u8) -> Result<(), Error> {
        self.write(&[state])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let written = self.0.write_all(bytes);
        written.context(|| "cannot write to iperf3".into())
    }

    /// Reads the length of a message, and then the message.
    fn read_message(&mut self) -> Result<Vec<u8>, Error> {
        let mut length = [0; 4];
        self.read(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MESSAGE_LIMIT_BYTES {
            return Err(Error::WrongResult(format!(
                "iperf3 announces a message of {length} bytes"
            )));
        }
        let mut message = vec![0; length];
        self.read(&mut message)?;
        Ok(message)
    }

    fn read(&mut self, into: &mut [u8]) -> Result<(), Error> {
        let read = self.0.read_exact(into);
        read.context(|| "cannot read from iperf3".into())
    }
}

fn read_cookie(stream: &mut TcpStream) -> Result<[u8; COOKIE_BYTES], Error> {
    let mut cookie = [0; COOKIE_BYTES];
    let read = stream.read_exact(&mut cookie);
    read.context(|| "cannot read iperf3's cookie".into())?;
    Ok(cookie)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    const COOKIE: [u8; COOKIE_BYTES] = [b'c'; COOKIE_BYTES];

    /// Acts as a client. Sends a cookie and parameters on the control connection, then the cookie
    /// `second` and some data on the second connection, then `after` on the control connection.
    /// Returns everything that the server has sent on the control connection.
    fn client(address: std::net::SocketAddr, second: [u8; COOKIE_BYTES], after: &[u8]) -> Vec<u8> {
        let mut control = TcpStream::connect(address).unwrap();
        control.write_all(&COOKIE).unwrap();
        control.write_all(b"\0\0\0\x02{}").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&second).unwrap();
        stream.write_all(b"data").unwrap();
        drop(stream);
        control.write_all(after).unwrap();
        let mut received = Vec::new();
        // Ignore an error, because the server resets the connection if it gives up.
        let _ = control.read_to_end(&mut received);
        received
    }

    fn open(
        second: [u8; COOKIE_BYTES],
        after: &'static [u8],
        check: impl FnOnce(Result<(TcpStream, Control), Error>),
    ) -> Vec<u8> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let client = thread::spawn(move || client(address, second, after));
        let mut streams = Vec::from([(); 2].map(|()| listener.accept().unwrap().0));
        check(Control::open(|| Ok(streams.remove(0))));
        client.join().unwrap()
    }

    #[test]
    fn a_test_passes_through_all_states() {
        let received = open(COOKIE, b"\x04\0\0\0\x02{}\x10", |opened| {
            let (mut stream, mut control) = opened.unwrap();
            let mut data = Vec::new();
            stream.read_to_end(&mut data).unwrap();
            assert_eq!(data, b"data");
            assert!(control.respond(4).unwrap());
            assert!(!control.respond(4).unwrap());
        });
        assert_eq!(received[..5], [9, 10, 1, 2, 13]);
        let length = u32::from_be_bytes(received[5..9].try_into().unwrap()) as usize;
        let results: serde_json::Value = serde_json::from_slice(&received[9..9 + length]).unwrap();
        assert_eq!(results["streams"][0]["bytes"], 4);
        assert_eq!(received[9 + length..], [14]);
    }

    #[test]
    fn a_different_cookie_and_a_client_that_gives_up_are_errors() {
        let mut different = COOKIE;
        different[0] = b'x';
        open(different, b"", |opened| {
            assert!(matches!(opened, Err(Error::WrongResult(_))), "{opened:?}");
        });
        open(COOKIE, b"\x0c", |opened| {
            let (_stream, mut control) = opened.unwrap();
            assert!(matches!(control.respond(0), Err(Error::WrongResult(_))));
        });
    }
}
