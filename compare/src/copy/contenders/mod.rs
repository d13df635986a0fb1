//! The contenders of `compare copy`. To add a contender, write a module with a `CONTENDER` that
//! says how to send the file, and add the `CONTENDER` to [`ALL`].

mod read_write;
mod sendfile;
mod std_copy;
mod tokio_copy;
mod tokio_copy_buf;
mod uncopied;
mod uncopied_tokio;

use super::contender::FileSender;
use crate::participant;

/// All contenders, in the order in which they are measured and listed. The first contender that is
/// not ours is the baseline: the report has the ratio of every other contender to the baseline.
pub(super) const ALL: &[FileSender] = &[
    uncopied_tokio::CONTENDER,
    tokio_copy::CONTENDER,
    tokio_copy_buf::CONTENDER,
    uncopied::CONTENDER,
    sendfile::CONTENDER,
    std_copy::CONTENDER,
    read_write::CONTENDER,
];

/// Finds a contender by its name.
pub(super) fn by_name(name: &str) -> Result<&'static FileSender, String> {
    participant::by_name(ALL, name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::copy::job::CopyJob;
    use crate::pattern;
    use std::fs::{self, File};
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    #[test]
    fn names_are_unique_and_found() {
        participant::check_names(ALL);
        assert!(by_name("cat").is_err_and(|message| message.contains("tokio-copy")));
    }

    #[test]
    fn every_contender_sends_the_file_and_returns_its_size() {
        let expected = pattern::bytes(3_000_001);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, &expected).unwrap();
        for contender in ALL {
            let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
            let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let mut stream = listener.accept().unwrap().0;
            let receiver = thread::spawn(move || {
                let mut received = Vec::new();
                stream.read_to_end(&mut received).unwrap();
                received
            });
            let file = File::open(&path).unwrap();
            let sent = (contender.send)(CopyJob { file, socket }).unwrap();
            assert_eq!(sent, expected.len() as u64, "{}", contender.name);
            assert!(receiver.join().unwrap() == expected, "{}", contender.name);
        }
    }
}
