//! Compares every byte of one transfer through a relay.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use super::Pair;
use super::bulk::BulkConnection;
use crate::error::{Context, Error};
use crate::loopback::receiver::Receiver;
use crate::pattern;
use crate::relay::case::Direction;

/// What a sink sends after the end of the stream that it has received.
const REPLY: &[u8; 8] = b"complete";

/// Sends `size` bytes on each connection, all at the same time and different on each, and compares
/// what `receiver` receives. Checks also that the end of each stream arrives after the last byte,
/// and that the other direction can still be used then.
///
/// # Errors
///
/// [`Error::WrongResult`] if anything else arrives.
pub(in crate::relay) fn verify(
    receiver: &mut Receiver,
    pairs: Vec<Pair>,
    direction: Direction,
    size: u64,
) -> Result<(), Error> {
    let of = |pair| BulkConnection::new(pair, direction);
    let connections: Vec<BulkConnection> = pairs.into_iter().map(of).collect();
    let mut senders = Vec::new();
    let mut sinks = Vec::new();
    for (number, BulkConnection { source, sink, .. }) in (0_u32..).zip(connections) {
        senders.push(thread::spawn(move || send(source, size, number)));
        sinks.push(sink);
    }
    for (number, sink) in (0_u32..).zip(sinks) {
        compare(receiver, sink, size, number)?;
    }
    for sender in senders {
        sender
            .join()
            .map_err(|_| Error::WrongResult("a thread that sends has panicked".into()))??;
    }
    Ok(())
}

/// Sends a stream, ends it, and expects the reply.
fn send(mut source: TcpStream, size: u64, number: u32) -> Result<(), Error> {
    let mut reply = Vec::new();
    source
        .write_all(&pattern::numbered_bytes(size, number))
        .and_then(|()| source.shutdown(Shutdown::Write))
        .and_then(|()| source.read_to_end(&mut reply))
        .context(|| "a connection failed".into())?;
    if reply == REPLY {
        return Ok(());
    }
    Err(Error::WrongResult(format!(
        "after one direction had ended, {} bytes instead of {} came in the other one",
        reply.len(),
        REPLY.len()
    )))
}

/// Compares a stream and its end, and sends the reply.
fn compare(receiver: &mut Receiver, sink: TcpStream, size: u64, number: u32) -> Result<(), Error> {
    let mut reply_stream = sink
        .try_clone()
        .context(|| "cannot duplicate a socket".into())?;
    let mut incoming = receiver.incoming(vec![sink])?;
    incoming.compare(&pattern::numbered_bytes(size, number))?;
    incoming.discard_to_end()?;
    if incoming.received_bytes() != size {
        return Err(Error::WrongResult(format!(
            "{} bytes arrived instead of {size}",
            incoming.received_bytes()
        )));
    }
    reply_stream
        .write_all(REPLY)
        .and_then(|()| reply_stream.shutdown(Shutdown::Write))
        .context(|| "a connection failed".into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::test_relay::pair_through;
    use super::*;

    /// Verifies two connections through a relay that changes the bytes to the server.
    fn verify_with(
        direction: Direction,
        change: impl FnMut(usize, &mut Vec<u8>) + Clone + Send + 'static,
    ) -> Result<(), Error> {
        let pairs = vec![pair_through(|_, _| {}), pair_through(change)];
        let mut receiver = Receiver::listen("reno").unwrap();
        verify(&mut receiver, pairs, direction, 100_000)
    }

    #[test]
    fn a_relay_that_changes_nothing_passes() {
        for direction in [Direction::ToServer, Direction::ToClient] {
            assert!(verify_with(direction, |_, _| {}).is_ok(), "{direction:?}");
        }
    }

    #[test]
    fn changed_lost_and_additional_bytes_are_errors() {
        let message =
            |change: fn(usize, &mut Vec<u8>)| match verify_with(Direction::ToServer, change) {
                Err(Error::WrongResult(message)) => message,
                other => panic!("{other:?}"),
            };
        let changed = message(|before, bytes| {
            if before + bytes.len() == 100_000 {
                bytes[0] ^= 1;
            }
        });
        assert!(changed.contains("differ"), "{changed}");
        let lost = message(|before, bytes| {
            if before + bytes.len() == 100_000 {
                bytes.pop();
            }
        });
        assert!(lost.contains("too early"), "{lost}");
        let additional = message(|before, bytes| {
            if before + bytes.len() == 100_000 {
                bytes.push(0);
            }
        });
        assert!(additional.contains("100001 bytes"), "{additional}");
    }

    #[test]
    fn a_reply_that_comes_back_changed_is_an_error() {
        let reply = verify_with(Direction::ToClient, |_, bytes| bytes[0] ^= 1);
        let message = reply.unwrap_err().to_string();
        assert!(
            message.contains("after one direction had ended"),
            "{message}"
        );
    }
}
