//! An event loop of mio: sends memory to a peer that reads slowly, and never waits in a send.
//!
//!     cargo run --features mio --example event_loop_mio

use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::thread;

use mio::{Events, Interest, Poll, Token};
use uncopied::{ErrorKind, Sender};

const BYTES: usize = 64 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut peer = TcpStream::connect(listener.local_addr()?)?;
    let receiver =
        thread::spawn(move || io::copy(&mut (&mut peer).take(BYTES as u64), &mut io::sink()));
    let socket = listener.accept()?.0;
    socket.set_nonblocking(true)?;

    let mut poll = Poll::new()?;
    let mut sender = Sender::new(mio::net::TcpStream::from_std(socket));
    poll.registry()
        .register(sender.get_mut(), Token(0), Interest::WRITABLE)?;
    let mut events = Events::with_capacity(64);
    let mut rest = bytes::Bytes::from(vec![7; BYTES]);
    while !rest.is_empty() {
        poll.poll(&mut events, None)?;
        if events.iter().any(|event| event.is_error()) {
            // This is also how notifications of the kernel are reported.
            sender.reap();
        }
        while !rest.is_empty() {
            match sender.try_send(&rest) {
                Ok(sent) => drop(rest.split_to(sent.bytes() as usize)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    let received = receiver.join().expect("the receiver does not panic")?;
    println!("{}; received {received} bytes", sender.report());
    Ok(())
}
