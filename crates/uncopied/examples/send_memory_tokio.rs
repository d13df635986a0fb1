//! Sends the same pages to every client that connects, and prints how they were sent.
//!
//!     cargo run --features tokio --example send_memory_tokio -- 127.0.0.1:9000

use tokio::net::{TcpListener, TcpStream};
use uncopied::Error;
use uncopied::arena::{PageBuffer, Pages};
use uncopied::tokio::Sender;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1);
    let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:9000")).await?;
    println!("listening on {}", listener.local_addr()?);
    let mut buffer = PageBuffer::zeroed(8 << 20)?;
    buffer.fill(b'u');
    // `freeze_permanently` promises that the pages are never written to again. So no copy is
    // needed, even for clients on this machine, whose sockets refer to the pages even after the
    // bytes have been acknowledged.
    let pages = buffer.freeze_permanently();
    loop {
        let (socket, peer) = listener.accept().await?;
        let pages = pages.clone();
        tokio::spawn(async move {
            if let Err(error) = serve(socket, pages).await {
                eprintln!("{peer}: {error}");
            }
        });
    }
}

async fn serve(socket: TcpStream, pages: Pages) -> Result<(), Error> {
    let mut sender = Sender::new(socket);
    let sent = sender.send(pages).await?;
    let outcome = sent.completion().clone().await;
    println!("{}; pages free: {:?}", sent.report(), outcome.reason);
    Ok(())
}
