//! A protocol in which each file is a frame: the length in front of it, and a checksum after it.
//! Header, file and trailer share packets.
//!
//!     cargo run --example framed_file

use std::fs::File;
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::thread;

use uncopied::{Report, SendFile};

/// Sends the file as a frame.
fn send_frame(file: &File, checksum: u32, socket: &TcpStream) -> io::Result<Report> {
    let length = file.metadata()?.len();
    let send = SendFile::new(file)
        .range(..length)
        .header(length.to_be_bytes().to_vec())
        .trailer(checksum.to_be_bytes().to_vec());
    Ok(send.to(socket)?)
}

/// Receives a frame: its bytes, and the checksum.
fn receive_frame(socket: &mut impl Read) -> io::Result<(Vec<u8>, u32)> {
    let (mut length, mut checksum, mut bytes) = ([0; 8], [0; 4], Vec::new());
    socket.read_exact(&mut length)?;
    let length = u64::from_be_bytes(length);
    socket.take(length).read_to_end(&mut bytes)?;
    socket.read_exact(&mut checksum)?;
    Ok((bytes, u32::from_be_bytes(checksum)))
}

fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let receiver = thread::spawn(move || receive_frame(&mut TcpStream::connect(address)?));

    let socket = listener.accept()?.0;
    let file = File::open(std::env::current_exe()?)?;
    let report = send_frame(&file, 0xc0ffee, &socket)?;
    let (bytes, checksum) = receiver.join().expect("the receiver does not panic")?;
    println!("{report}; received {} bytes, {checksum:x}", bytes.len());
    Ok(())
}
