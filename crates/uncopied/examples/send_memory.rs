//! Sends frames from a few buffers, and reuses each buffer as soon as the kernel no longer reads
//! it.
//!
//!     cargo run --example send_memory -- 192.0.2.1:9000 1000
//!
//! Start a program that listens at that address first, such as `nc -l 9000 >/dev/null`.

use std::collections::VecDeque;
use std::net::TcpStream;

use uncopied::Sender;
use uncopied::arena::{PageBuffer, Pages};

const FRAME_BYTES: usize = 256 << 10;
const BUFFER_COUNT: usize = 8;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let address = args.next().ok_or("usage: send_memory ADDRESS [FRAMES]")?;
    let frames = args.next().map_or(Ok(1000), |count| count.parse::<u64>())?;

    let mut sender = Sender::new(TcpStream::connect(address)?);
    // The pages of the most recent sends, oldest first.
    let mut sent: VecDeque<Pages> = VecDeque::new();
    for frame in 0..frames {
        let oldest = if sent.len() == BUFFER_COUNT {
            sent.pop_front()
        } else {
            None
        };
        // If the kernel still reads the oldest pages, take a new buffer from the pool instead. The
        // old pages return to the pool by themselves once the kernel is done with them.
        let mut buffer = match oldest.map(Pages::try_into_buffer) {
            Some(Ok(buffer)) => buffer,
            Some(Err(_)) | None => PageBuffer::with_capacity(FRAME_BYTES)?,
        };
        buffer.set_len(FRAME_BYTES);
        buffer.fill(frame as u8);
        let pages = buffer.freeze();
        sender.send(pages.clone())?;
        sent.push_back(pages);
    }
    println!("{}", sender.report());
    Ok(())
}
