//! Sends bytes that the program already has, of several types, in one send each. To a peer on
//! another machine, those of 16 KiB or more are not copied.
//!
//!     cargo run --example send_bytes -- 192.0.2.1:9000
//!
//! Without an address, a thread of this program receives the bytes.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use uncopied::{Memory, Sender};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let own_address = listener.local_addr()?.to_string();
    thread::spawn(move || io::copy(&mut listener.accept()?.0, &mut io::sink()));
    let address = std::env::args().nth(1).unwrap_or(own_address);
    let mut sender = Sender::new(TcpStream::connect(address)?);

    let shared: Arc<[u8]> = vec![1; 1 << 20].into();
    let message = Bytes::from(vec![2; 1 << 20]);
    sender.send(vec![3; 1 << 20])?;
    sender.send(&shared)?;
    sender.send(message.slice(1000..))?;
    let parts = [
        Memory::from(b"head: "),
        Memory::from(&message),
        Memory::from("\r\n".to_owned()),
    ];
    let sent = sender.send_parts(parts)?;

    // The library keeps the bytes for as long as the kernel reads them, so nobody needs to wait.
    let outcome = sent.into_completion().wait(None)?;
    println!("{}", sender.report());
    println!(
        "the last send: {:?} after {:?}",
        outcome.reason, outcome.elapsed
    );
    Ok(())
}
