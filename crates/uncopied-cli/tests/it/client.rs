//! An HTTP client that sends and reads exactly the bytes that a test asks for.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// The maximum time that any step of a test may take. A step that takes longer has failed.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Returns an address of this machine at which nothing listened a moment ago.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

/// Reads the rest of the stream, which must end with an orderly close, and not with a reset.
pub(crate) fn read_to_end(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Connects with a small receive buffer, so that the server is soon blocked if the client stops
/// reading.
pub(crate) fn connect_with_small_window(address: SocketAddr) -> TcpStream {
    connect_with_receive_buffer(address, 64 << 10)
}

/// Connects with a receive buffer of this size, which also limits the window.
pub(crate) fn connect_with_receive_buffer(address: SocketAddr, bytes: usize) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(bytes).unwrap();
    socket.connect(&address.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    stream
}

pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (header, value) = line.split_once(':')?;
            header.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// Sends a GET on a connection that stays open, and reads the response.
pub(crate) fn get(stream: &mut (impl Read + Write), target: &str) -> Response {
    send_get(stream, target);
    read_response(stream).unwrap()
}

pub(crate) fn send_get(stream: &mut impl Write, target: &str) {
    let request = format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
}

/// Reads one response, which must have a Content-Length.
pub(crate) fn read_response(stream: &mut impl Read) -> io::Result<Response> {
    let (head, length) = read_head(stream)?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Ok(Response { status, head, body })
}

/// Reads the head of a response byte by byte, so that the body stays unread. Returns the head and
/// the length of the body.
pub(crate) fn read_head(stream: &mut impl Read) -> io::Result<(String, usize)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.trim().parse().unwrap());
    Ok((head, length))
}

/// Reads until the peer closes or resets the connection. Panics if the connection stays open.
pub(crate) fn read_to_close(stream: &mut impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 65536];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return all,
            Ok(n) => all.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return all,
            Err(error) => panic!("the connection is still open: {error}"),
        }
    }
}

/// Waits for `time`. Returns true if no byte has arrived by then.
pub(crate) fn receives_nothing(stream: &mut TcpStream, time: Duration) -> bool {
    stream.set_read_timeout(Some(time)).unwrap();
    let outcome = stream.peek(&mut [0]);
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    outcome.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}
