//! The protocol of `framed_file` on tokio. The write half of the connection, and the open file, are
//! shared by several tasks.
//!
//!     cargo run --features tokio --example framed_file_tokio

use std::fs::File;
use std::io;
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use uncopied::SendFile;

async fn send_frame(file: &File, socket: &OwnedWriteHalf) -> io::Result<()> {
    let length = file.metadata()?.len();
    let header = length.to_be_bytes().to_vec();
    let send = SendFile::new(file).range(..length).header(header);
    println!("{}", send.trailer("\r\n").to_tokio(socket).await?);
    Ok(())
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut peer = TcpStream::connect(listener.local_addr()?).await?;
    let (_reading, writing) = listener.accept().await?.0.into_split();

    let socket = Arc::new(Mutex::new(writing));
    let file = Arc::new(File::open(std::env::current_exe()?)?);
    for _ in 0..3 {
        let (socket, file) = (Arc::clone(&socket), Arc::clone(&file));
        tokio::spawn(async move { send_frame(&file, &*socket.lock().await).await });
    }
    for _ in 0..3 {
        let length = peer.read_u64().await?;
        let mut frame = vec![0; length as usize + 2];
        peer.read_exact(&mut frame).await?;
        assert!(frame.ends_with(b"\r\n"));
    }
    println!("received three frames");
    Ok(())
}
