//! Uses a region as a ring of frames for two peers. A frame may be overwritten at any time: if the
//! kernel still reads it, the writer gets a fresh page, and the peer still gets the old bytes.
//!
//!     cargo run --release --example region_ring

use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::thread;

use uncopied::Sender;
use uncopied::arena::Region;

const FRAME_BYTES: usize = 2 << 20;
const FRAMES: usize = 64;

fn receive_all(mut socket: TcpStream) -> io::Result<()> {
    let mut frame = vec![0; FRAME_BYTES];
    for number in 0..FRAMES {
        socket.read_exact(&mut frame)?;
        assert!(frame.iter().all(|&byte| byte == number as u8));
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let receivers =
        [(); 2].map(|()| thread::spawn(move || receive_all(TcpStream::connect(address)?)));
    let mut senders = [
        Sender::new(listener.accept()?.0),
        Sender::new(listener.accept()?.0),
    ];

    let (region, mut writer) = Region::new(4 * FRAME_BYTES)?;
    for number in 0..FRAMES {
        let start = number * FRAME_BYTES % region.len();
        let slot = region.part(start..start + FRAME_BYTES);
        writer[start..start + FRAME_BYTES].fill(number as u8);
        for sender in &mut senders {
            sender.send(&slot)?;
        }
    }
    for receiver in receivers {
        receiver.join().expect("the receiver does not panic")?;
    }
    println!("{}", senders[0].report());
    Ok(())
}
