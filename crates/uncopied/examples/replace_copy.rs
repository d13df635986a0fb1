//! `tokio::io::copy` from a file to a socket, and the call that replaces it, with the same
//! arguments.
//!
//!     cargo run --release --features tokio --example replace_copy

use std::io;
use std::time::Instant;

use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::net::{TcpListener, TcpStream};

async fn before(file: &mut File, socket: &mut TcpStream) -> io::Result<u64> {
    tokio::io::copy(file, socket).await
}

async fn after(file: &mut File, socket: &mut TcpStream) -> io::Result<u64> {
    Ok(uncopied::tokio::copy(file, socket).await?.bytes())
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut socket = TcpStream::connect(listener.local_addr()?).await?;
    let mut peer = listener.accept().await?.0;
    tokio::spawn(async move {
        let mut buffer = vec![0; 1 << 20];
        while peer.read(&mut buffer).await? > 0 {}
        io::Result::Ok(())
    });
    let mut file = File::open(std::env::current_exe()?).await?;
    let began = Instant::now();
    let copied = before(&mut file, &mut socket).await?;
    println!("tokio::io::copy: {copied} bytes in {:?}", began.elapsed());
    file.rewind().await?;
    let began = Instant::now();
    let sent = after(&mut file, &mut socket).await?;
    println!(
        "uncopied::tokio::copy: {sent} bytes in {:?}",
        began.elapsed()
    );
    Ok(())
}
