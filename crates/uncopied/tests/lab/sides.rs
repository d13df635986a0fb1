//! Runs the two sides of a test, one in each guest.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::harness::HANG_TIMEOUT;

const PORT: u16 = 7000;

/// Stays open between the tests, so that a connection that guest 1 makes early is not refused.
static LISTENER: LazyLock<TcpListener> =
    LazyLock::new(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap());

/// Runs `sending` in guest 1 and `receiving` in guest 2, each with its end of a TCP connection.
pub(crate) fn two_sides(sending: impl FnOnce(TcpStream), receiving: impl FnOnce(TcpStream)) {
    let socket = connection();
    match is_sending() {
        true => sending(socket),
        false => receiving(socket),
    }
}

/// Like [`two_sides`], but with a second connection, through which `sending` can tell `receiving`
/// to go on.
pub(crate) fn two_sides_with_control(
    sending: impl FnOnce(TcpStream, TcpStream),
    receiving: impl FnOnce(TcpStream, TcpStream),
) {
    let (socket, control) = (connection(), connection());
    match is_sending() {
        true => sending(socket, control),
        false => receiving(socket, control),
    }
}

/// Runs a test that needs no second machine in guest 1. Guest 2 does nothing.
pub(crate) fn in_one_guest(test: impl FnOnce()) {
    if is_sending() {
        test();
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).expect("this program is run by lab/test")
}

/// The address of the other guest.
pub(crate) fn peer() -> Ipv4Addr {
    variable("UNCOPIED_LAB_PEER").parse().unwrap()
}

/// Whether this is guest 1.
fn is_sending() -> bool {
    variable("UNCOPIED_LAB_GUEST") == "1"
}

/// Returns this guest's end of a new connection, once the other guest has its end.
fn connection() -> TcpStream {
    if is_sending() {
        let mut socket = connect((peer(), PORT).into());
        // The other guest may still be in an earlier test.
        socket.read_exact(&mut [0]).unwrap();
        socket
    } else {
        let mut socket = LISTENER.accept().unwrap().0;
        socket.write_all(&[0]).unwrap();
        socket
    }
}

/// Connects to the other guest, which may still be booting.
fn connect(peer: SocketAddr) -> TcpStream {
    let began = Instant::now();
    loop {
        match TcpStream::connect(peer) {
            Ok(socket) => return socket,
            Err(error) => assert!(began.elapsed() < HANG_TIMEOUT, "{error}"),
        }
        sleep(Duration::from_millis(50));
    }
}
