//! Sends one frame to 500 peers. All sends share the frame's memory, and none copies it.
//!
//!     cargo run --release --features tokio --example fan_out

use std::io;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use uncopied::arena::PageBuffer;
use uncopied::tokio::Sender;

const PEERS: usize = 500;
const FRAME_BYTES: usize = 256 << 10;

async fn receive(mut socket: TcpStream) -> io::Result<()> {
    let mut frame = vec![0; FRAME_BYTES];
    socket.read_exact(&mut frame).await?;
    assert!(frame.iter().all(|&byte| byte == 7), "wrong bytes");
    Ok(())
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let mut buffer = PageBuffer::huge(FRAME_BYTES)?;
    buffer.set_len(FRAME_BYTES);
    buffer.fill(7);
    // `freeze_permanently` promises that the pages are never written to again. So they need not be
    // copied even for peers on this machine.
    let frame = buffer.freeze_permanently();

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (mut senders, mut receivers) = (JoinSet::new(), JoinSet::new());
    for _ in 0..PEERS {
        receivers.spawn(receive(TcpStream::connect(listener.local_addr()?).await?));
        let mut sender = Sender::new(listener.accept().await?.0);
        let frame = frame.clone();
        senders.spawn(async move { sender.send(frame).await });
    }
    let mut not_copied = 0;
    while let Some(sent) = senders.join_next().await {
        not_copied += sent??.report().zero_copy_bytes();
    }
    while let Some(received) = receivers.join_next().await {
        received??;
    }
    println!("{not_copied} bytes to {PEERS} peers, without a copy");
    Ok(())
}
