//! Passes a stream on to a second socket, and stores it on a disk: from network card to memory to
//! network card and disk. No byte of a mapped page is copied on the way.
//!
//!     cargo run --example receive_and_pass_on

use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::{fs::File, io, path::Path, thread};

use uncopied::{ChunkPart, Mechanism, PagePayload, Receiver, SendOptions, Sender};

fn pass_on(from: TcpStream, to: TcpStream, path: &Path) -> io::Result<()> {
    let cached = File::create(path)?;
    let mut options = File::options();
    let direct = options.write(true).custom_flags(libc::O_DIRECT).open(path);
    let direct = direct.or_else(|_| cached.try_clone())?;
    let (mut receiver, mut sender, mut offset) = (Receiver::new(from), Sender::new(to), 0);
    while let Some(chunk) = receiver.receive()? {
        for part in chunk {
            // The disk reads whole blocks from the received pages. Other bytes are copied.
            let is_direct = matches!(part, ChunkPart::Mapped(_)) && offset % 4096 == 0;
            part.write_at(if is_direct { &direct } else { &cached }, offset)?;
            offset += part.len() as u64;
            sender.send(part)?;
        }
    }
    println!("received {}\nsent {}", receiver.report(), sender.report());
    Ok(())
}

fn main() -> io::Result<()> {
    let listener = PagePayload::new(1)?.bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (source, from) = (TcpStream::connect(address)?, listener.accept()?.0);
    let (to, mut sink) = (TcpStream::connect(address)?, listener.accept()?.0);
    let sending = thread::spawn(move || {
        // Over loopback, only bytes that are sent with MSG_ZEROCOPY can be mapped.
        let options = SendOptions::default().force_mechanisms(&[Mechanism::MsgZerocopy]);
        Sender::with(source, options).send(vec![7; 16 << 20])
    });
    let reading = thread::spawn(move || io::copy(&mut sink, &mut io::sink()));
    let file = tempfile::NamedTempFile::new_in(".")?;
    pass_on(from, to, file.path())?;
    sending.join().expect("no panic")?;
    println!("{} bytes have arrived", reading.join().expect("no panic")?);
    Ok(())
}
