//! Receives from several connections into one area of memory, to which a network card writes
//! directly. Without such a card, every byte is copied, and the program says why.
//!
//!     cargo run --example receive_queue [INTERFACE QUEUE]

use std::net::{TcpListener, TcpStream};
use std::{env, error::Error, io::Write, thread};

use uncopied::zcrx::{Builder, Event};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let builder = match &arguments[..] {
        [interface, queue] => Builder::for_interface(interface, queue.parse()?),
        _ => Builder::without_device(),
    };
    let mut queue = builder.register_or_copy()?;
    if let Some(refusal) = queue.refusal() {
        println!("every byte is copied: {refusal}");
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mut peers = Vec::new();
    for number in 0..4 {
        peers.push(thread::spawn(move || {
            TcpStream::connect(address)?.write_all(&vec![number; 4 << 20])
        }));
        queue.add(listener.accept()?.0)?;
    }
    while let Some((id, event)) = queue.receive(None)? {
        match event {
            // Dropping a chunk gives its memory back.
            Event::Chunk(chunk) => assert!(chunk.iter().all(|&byte| byte == chunk[0])),
            Event::End => println!("{id:?}: {}", queue.report_of(id).ok_or("no report")?),
            Event::Failed(error) => return Err(error.into()),
        }
    }
    for peer in peers {
        peer.join().expect("no panic")?;
    }
    println!("in total {}", queue.report());
    Ok(())
}
