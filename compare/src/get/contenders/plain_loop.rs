//! The plainest downloader: a loop of `recv` and `write`. It is the hidden subcommand `get-loop`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;

use clap::Args;

use crate::error::{Context, Error};
use crate::get::case::GetCase;
use crate::get::contender::{Download, Downloader};
use crate::{machine, process};

/// The size of the buffer in bytes.
const BUFFER_BYTES: usize = 256 * 1024;

/// The maximum number of headers of a response. The response of nginx has fewer than ten.
const MAX_HEADERS: usize = 32;

pub(super) const CONTENDER: Downloader = Downloader {
    name: "loop",
    about: "a plain loop of `recv` and `write` with a buffer of 256 KiB, on a blocking socket",
    ours: false,
    takes_part: |case| !matches!(case, GetCase::Many(_)),
    version: || Ok(machine::own_version()),
    command,
};

fn command(download: &Download<'_>) -> Result<Vec<OsString>, Error> {
    match download {
        Download::One { url, output } => Ok(vec![
            process::own_program()?.into(),
            "get-loop".into(),
            "--output".into(),
            output.into(),
            url.into(),
        ]),
        Download::Many { .. } => Err(Error::Unavailable("it fetches only one file".into())),
    }
}

/// Arguments of the hidden subcommand `get-loop`.
#[derive(Args)]
pub(crate) struct LoopFlags {
    /// The URL to fetch, as `http://ADDRESS:PORT/PATH`.
    url: String,
    /// The file to write.
    #[arg(long)]
    output: PathBuf,
}

/// Fetches the URL over a connection of its own, and writes the body to the file.
///
/// # Errors
///
/// [`Error::WrongResult`] if the response is not a 200 with a Content-Length, or if its body has
/// another length.
pub(crate) fn run(flags: &LoopFlags) -> Result<(), Error> {
    let (address, path) = flags
        .url
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'))
        .ok_or_else(|| Error::Usage(format!("{} is not http://ADDRESS:PORT/PATH", flags.url)))?;
    let mut socket =
        TcpStream::connect(address).context(|| format!("cannot connect to {address}"))?;
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    socket
        .write_all(request.as_bytes())
        .context(|| "cannot send the request".into())?;
    let name = flags.output.display();
    let mut file = File::create(&flags.output).context(|| format!("cannot create {name}"))?;
    let mut write = |bytes: &[u8]| {
        file.write_all(bytes)
            .context(|| format!("cannot write {name}"))
    };

    let mut buffer = vec![0; BUFFER_BYTES];
    let mut filled = 0;
    let (head, promised) = loop {
        let count = receive(&mut socket, &mut buffer[filled..])?;
        if count == 0 {
            return Err(Error::WrongResult("the head of the response ended".into()));
        }
        filled += count;
        if let Some(parsed) = parse_head(&buffer[..filled])? {
            break parsed;
        }
    };
    write(&buffer[head..filled])?;
    let mut bytes = (filled - head) as u64;
    loop {
        match receive(&mut socket, &mut buffer)? {
            0 => break,
            count => {
                write(&buffer[..count])?;
                bytes += count as u64;
            }
        }
    }
    if bytes == promised {
        return Ok(());
    }
    Err(Error::WrongResult(format!(
        "{bytes} bytes arrived, but Content-Length is {promised}"
    )))
}

/// Receives once. Returns 0 at the end of the stream, and if the buffer is empty.
fn receive(socket: &mut TcpStream, buffer: &mut [u8]) -> Result<usize, Error> {
    loop {
        match socket.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result.context(|| "cannot receive".into()),
        }
    }
}

/// Returns the length of the head and the Content-Length, or `None` while the head is incomplete.
fn parse_head(bytes: &[u8]) -> Result<Option<(usize, u64)>, Error> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let status = response
        .parse(bytes)
        .map_err(|error| Error::WrongResult(format!("the head of the response: {error}")))?;
    let httparse::Status::Complete(length) = status else {
        return Ok(None);
    };
    if response.code != Some(200) {
        return Err(Error::WrongResult(format!("status {:?}", response.code)));
    }
    response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok())
        .map(|promised| Some((length, promised)))
        .ok_or_else(|| Error::WrongResult("no Content-Length".into()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    /// Runs the loop against a server that sends `response` and closes the connection.
    fn fetch(response: &'static [u8]) -> (Result<(), Error>, Vec<u8>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            stream.write_all(response).unwrap();
        });
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("file");
        let result = run(&LoopFlags {
            url: format!("http://{address}/a"),
            output: output.clone(),
        });
        server.join().unwrap();
        (result, std::fs::read(output).unwrap())
    }

    #[test]
    fn the_body_is_written_and_its_length_is_checked() {
        let (result, bytes) = fetch(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        assert!(result.is_ok());
        assert_eq!(bytes, b"hello");
        for wrong in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello"[..],
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-",
        ] {
            assert!(matches!(fetch(wrong).0, Err(Error::WrongResult(_))));
        }
    }
}
