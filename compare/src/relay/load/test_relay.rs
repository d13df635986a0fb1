//! A relay in this process, for the tests of the load.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use super::Pair;
use super::pair::set_up;

/// Opens a connection through a relay that changes the bytes to the server with `change`, which is
/// also given the number of bytes before them. The bytes to the client are not changed.
pub(super) fn pair_through(change: impl FnMut(usize, &mut Vec<u8>) + Send + 'static) -> Pair {
    let (client, from_client) = connected();
    let (to_server, server) = connected();
    let from_server = to_server.try_clone().unwrap();
    let to_client = from_client.try_clone().unwrap();
    relay(from_client, to_server, change);
    relay(from_server, to_client, |_, _| {});
    Pair { client, server }
}

fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let accepted = listener.accept().unwrap().0;
    set_up(&stream).unwrap();
    set_up(&accepted).unwrap();
    (stream, accepted)
}

/// Relays in one direction, in a thread of its own.
fn relay(
    mut from: TcpStream,
    mut to: TcpStream,
    mut change: impl FnMut(usize, &mut Vec<u8>) + Send + 'static,
) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        let mut before = 0;
        while let Ok(got @ 1..) = from.read(&mut buffer) {
            let mut bytes = buffer[..got].to_vec();
            change(before, &mut bytes);
            before += got;
            if to.write_all(&bytes).is_err() {
                return;
            }
        }
        // Ignore the error that the other end has closed the connection already.
        let _ = to.shutdown(Shutdown::Write);
    });
}
