//! Sends frames from a few buffers that go round, each as soon as the kernel is done with it.
//!
//!     cargo run --example send_memory -- 192.0.2.1:9000 1000
//!
//! Something must listen there, such as `nc -l 9000 >/dev/null`.

use std::collections::VecDeque;
use std::net::TcpStream;

use uncopied::Sender;
use uncopied::arena::{PageBuffer, Pages};

const FRAME: usize = 256 << 10;
const BUFFERS: usize = 8;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let address = args.next().ok_or("usage: send_memory ADDRESS [FRAMES]")?;
    let frames = args.next().map_or(Ok(1000), |count| count.parse::<u64>())?;

    let mut sender = Sender::new(TcpStream::connect(address)?);
    let mut lent: VecDeque<Pages> = VecDeque::new();
    for frame in 0..frames {
        let oldest = (lent.len() == BUFFERS).then(|| lent.pop_front()).flatten();
        // Still lent, or none yet: a new buffer. The pool keeps those that come back.
        let mut buffer = match oldest.map(Pages::try_into_buffer) {
            Some(Ok(buffer)) => buffer,
            _ => PageBuffer::with_capacity(FRAME)?,
        };
        buffer.set_len(FRAME);
        buffer.fill(frame as u8);
        let pages = buffer.freeze();
        sender.send(pages.clone())?;
        lent.push_back(pages);
    }
    println!("{}", sender.report());
    Ok(())
}
