//! Chunked bodies (RFC 9112, section 7.1).

use uncopied::Mechanism;

use super::super::client::Connection;
use super::super::error::GetError;
use super::super::meter::Meter;
use super::super::response::MAX_HEAD_BYTES;
use super::super::sink::Sink;
use super::movement;

/// The rest of a chunk of at least this size goes from the socket to the sink past the buffer.
/// Smaller chunks are collected, so that one system call receives many of them and another one
/// writes them.
const LARGE_CHUNK_BYTES: u64 = 64 << 10;
const FILL_BYTES: usize = 64 << 10;
/// The longest line with the size of a chunk, with its extensions, in bytes.
const MAX_SIZE_LINE: usize = 4 << 10;

/// Receives a whole chunked body, without its trailers.
pub(super) async fn receive(
    connection: &mut Connection,
    sink: &mut Sink,
    meter: &Meter,
) -> Result<(), GetError> {
    let mut decoder = Decoder {
        connection,
        sink,
        meter,
        collected: Vec::new(),
    };
    let outcome = decoder.receive_chunks().await;
    // Also if the connection failed, what arrived is worth keeping.
    let flushed = decoder.flush().await;
    outcome.and(flushed)
}

struct Decoder<'a> {
    connection: &'a mut Connection,
    sink: &'a mut Sink,
    meter: &'a Meter,
    /// Bytes of chunks that have not been written yet.
    collected: Vec<u8>,
}

impl Decoder<'_> {
    async fn receive_chunks(&mut self) -> Result<(), GetError> {
        loop {
            let line = self.line(MAX_SIZE_LINE).await?;
            let size = chunk_size(&line)?;
            if size == 0 {
                return self.skip_trailers().await;
            }
            self.receive_chunk(size).await?;
            if !self.line(2).await?.is_empty() {
                return Err(GetError::BadChunk("a chunk is longer than its size"));
            }
        }
    }

    async fn receive_chunk(&mut self, size: u64) -> Result<(), GetError> {
        let mut rest = size;
        while rest > 0 {
            let bytes = self.connection.buffered();
            if bytes.is_empty() {
                self.flush().await?;
                if rest >= LARGE_CHUNK_BYTES {
                    rest -= movement::receive(self.connection, self.sink, Some(rest), self.meter)
                        .await?;
                    if rest > 0 {
                        return Err(GetError::CutChunks);
                    }
                } else {
                    self.fill().await?;
                }
                continue;
            }
            let len = usize::try_from(rest).map_or(bytes.len(), |rest| rest.min(bytes.len()));
            self.collected.extend_from_slice(&bytes[..len]);
            self.connection.consume(len);
            rest -= len as u64;
        }
        Ok(())
    }

    /// Returns the next line without CR LF, of at most `max` bytes with it.
    async fn line(&mut self, max: usize) -> Result<Vec<u8>, GetError> {
        loop {
            let bytes = self.connection.buffered();
            if let Some(end) = memchr::memchr(b'\n', &bytes[..bytes.len().min(max)]) {
                let Some(line) = bytes[..end].strip_suffix(b"\r") else {
                    return Err(GetError::BadChunk("a line does not end with CR LF"));
                };
                let line = line.to_vec();
                self.connection.consume(end + 1);
                return Ok(line);
            }
            if bytes.len() >= max {
                return Err(GetError::BadChunk("a line of its framing is too long"));
            }
            self.flush().await?;
            self.fill().await?;
        }
    }

    async fn skip_trailers(&mut self) -> Result<(), GetError> {
        let mut room = MAX_HEAD_BYTES;
        loop {
            let line = self.line(room).await?;
            if line.is_empty() {
                return Ok(());
            }
            room = room.saturating_sub(line.len() + 2);
        }
    }

    async fn fill(&mut self) -> Result<(), GetError> {
        let allowed = self.meter.allowance(Some(FILL_BYTES as u64)).await;
        // At most `FILL_BYTES`, so it fits.
        let max = allowed.map_or(FILL_BYTES, |max| max as usize);
        match self.connection.fill(max).await? {
            0 => Err(GetError::CutChunks),
            _ => Ok(()),
        }
    }

    /// Writes what was collected, so that no byte waits in memory for the network.
    async fn flush(&mut self) -> Result<(), GetError> {
        if !self.collected.is_empty() {
            self.sink.write_all(&self.collected).await?;
            self.meter
                .moved(Mechanism::Copy, self.collected.len() as u64);
            self.collected.clear();
        }
        Ok(())
    }
}

/// Parses the size of a chunk. Its extensions are ignored.
fn chunk_size(line: &[u8]) -> Result<u64, GetError> {
    let end = line.iter().position(|byte| *byte == b';');
    let digits = line[..end.unwrap_or(line.len())].trim_ascii_end();
    let is_number = (1..=16).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
    std::str::from_utf8(digits)
        .ok()
        .filter(|_| is_number)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or(GetError::BadChunk("a size is not a hexadecimal number"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn sizes_are_hexadecimal_digits() {
        for (line, size) in [
            ("0", 0),
            ("1a;x=\"y\"", 26),
            ("FF ;x", 255),
            ("ffffffffffffffff", u64::MAX),
        ] {
            assert_eq!(chunk_size(line.as_bytes()).unwrap(), size, "{line}");
        }
        for line in [
            "",
            ";",
            " 1",
            "+1",
            "-1",
            "0x1",
            "1 1",
            "g",
            "10000000000000000",
            "é",
        ] {
            assert!(chunk_size(line.as_bytes()).is_err(), "{line}");
        }
    }
}
