//! As much of the server's side of iperf3's protocol as its client needs to send to our receiver.
//!
//! A connection for control comes first and tells its cookie; lengths and one-byte states go to and fro
//! on it. A second one with the same cookie carries the bytes. When its time is over the client says so,
//! the two exchange their results, and the client hangs up.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use super::receiver::STALL_LIMIT;
use crate::error::{Context, Error};

/// A cookie: 36 letters and digits, and a NUL.
const COOKIE_BYTES: usize = 37;

/// Parameters and results take about a kilobyte.
const MESSAGE_LIMIT_BYTES: usize = 1024 * 1024;

/// What the protocol calls states, each sent as one byte.
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

/// The connection for control of a client that sends.
#[derive(Debug)]
pub(super) struct Control(TcpStream);

impl Control {
    /// Speaks with a client until it sends; returns the connection that it sends on, its cookie taken
    /// off.
    pub(super) fn open(
        mut accept: impl FnMut() -> Result<TcpStream, Error>,
    ) -> Result<(TcpStream, Self), Error> {
        let control = accept()?;
        control
            .set_read_timeout(Some(STALL_LIMIT))
            .context(|| "cannot set iperf3's connection up".into())?;
        let mut control = Self(control);
        let cookie = cookie(&mut control.0)?;
        control.tell(state::PARAM_EXCHANGE)?;
        // What was asked for is on the client's command line.
        control.message()?;
        control.tell(state::CREATE_STREAMS)?;
        let mut stream = accept()?;
        if self::cookie(&mut stream)? != cookie {
            return Err(Error::WrongAnswer(
                "iperf3's two connections have different cookies".into(),
            ));
        }
        control.tell(state::TEST_START)?;
        control.tell(state::TEST_RUNNING)?;
        Ok((stream, control))
    }

    /// To wait on.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.0
    }

    /// Answers what the client says; false once it has nothing more to say.
    pub(super) fn answer(&mut self, received_bytes: u64) -> Result<bool, Error> {
        let mut state = [0];
        self.read(&mut state)?;
        match state[0] {
            state::TEST_END => {
                self.tell(state::EXCHANGE_RESULTS)?;
                self.message()?;
                self.send_results(received_bytes)?;
                self.tell(state::DISPLAY_RESULTS)?;
                Ok(true)
            }
            state::IPERF_DONE => Ok(false),
            other => Err(Error::WrongAnswer(format!(
                "iperf3 says {other}, which is not how a test goes on"
            ))),
        }
    }

    /// The fields that the client insists on. It prints them; nobody else reads them.
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

    fn tell(&mut self, state: u8) -> Result<(), Error> {
        self.write(&[state])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let written = self.0.write_all(bytes);
        written.context(|| "cannot speak with iperf3".into())
    }

    /// A message, which comes behind its length.
    fn message(&mut self) -> Result<Vec<u8>, Error> {
        let mut length = [0; 4];
        self.read(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MESSAGE_LIMIT_BYTES {
            return Err(Error::WrongAnswer(format!(
                "iperf3 announces a message of {length} bytes"
            )));
        }
        let mut message = vec![0; length];
        self.read(&mut message)?;
        Ok(message)
    }

    fn read(&mut self, into: &mut [u8]) -> Result<(), Error> {
        let read = self.0.read_exact(into);
        read.context(|| "cannot hear from iperf3".into())
    }
}

fn cookie(stream: &mut TcpStream) -> Result<[u8; COOKIE_BYTES], Error> {
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

    /// What a client hears after having said the first cookie, its parameters, and the second cookie.
    fn client(address: std::net::SocketAddr, second: [u8; COOKIE_BYTES], after: &[u8]) -> Vec<u8> {
        let mut control = TcpStream::connect(address).unwrap();
        control.write_all(&COOKIE).unwrap();
        control.write_all(b"\0\0\0\x02{}").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&second).unwrap();
        stream.write_all(b"data").unwrap();
        drop(stream);
        control.write_all(after).unwrap();
        let mut heard = Vec::new();
        // A server that has given up resets the connection.
        let _ = control.read_to_end(&mut heard);
        heard
    }

    fn open(
        second: [u8; COOKIE_BYTES],
        after: &'static [u8],
        then: impl FnOnce(Result<(TcpStream, Control), Error>),
    ) -> Vec<u8> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let client = thread::spawn(move || client(address, second, after));
        let mut streams = Vec::from([(); 2].map(|()| listener.accept().unwrap().0));
        then(Control::open(|| Ok(streams.remove(0))));
        client.join().unwrap()
    }

    #[test]
    fn a_test_goes_through_all_its_states() {
        let heard = open(COOKIE, b"\x04\0\0\0\x02{}\x10", |opened| {
            let (mut stream, mut control) = opened.unwrap();
            let mut data = Vec::new();
            stream.read_to_end(&mut data).unwrap();
            assert_eq!(data, b"data");
            assert!(control.answer(4).unwrap());
            assert!(!control.answer(4).unwrap());
        });
        assert_eq!(heard[..5], [9, 10, 1, 2, 13]);
        let length = u32::from_be_bytes(heard[5..9].try_into().unwrap()) as usize;
        let results: serde_json::Value = serde_json::from_slice(&heard[9..9 + length]).unwrap();
        assert_eq!(results["streams"][0]["bytes"], 4);
        assert_eq!(heard[9 + length..], [14]);
    }

    #[test]
    fn a_stranger_and_a_client_that_gives_up_are_refused() {
        let mut stranger = COOKIE;
        stranger[0] = b'x';
        open(stranger, b"", |opened| {
            assert!(matches!(opened, Err(Error::WrongAnswer(_))), "{opened:?}");
        });
        open(COOKIE, b"\x0c", |opened| {
            let (_stream, mut control) = opened.unwrap();
            assert!(matches!(control.answer(0), Err(Error::WrongAnswer(_))));
        });
    }
}
