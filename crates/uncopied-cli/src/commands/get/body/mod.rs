//! Receiving the body of a response.

mod chunked;
mod movement;

use super::client::{Connection, UnexpectedInput};
use super::error::GetError;
use super::meter::Meter;
use super::response::Framing;
use super::sink::Sink;

/// Receives a whole body into `sink`. Returns whether the connection can be used again, provided
/// that the server keeps it open.
///
/// # Errors
///
/// The connection ends before the body does, the framing is wrong, more bytes arrive than were
/// announced, or the sink fails. The sink has then got all bytes of the body that arrived before,
/// and no other bytes.
///
/// # Cancellation
///
/// Dropping the future leaves the rest of the body in the socket, so the connection must be dropped
/// as well.
pub(super) async fn receive_body(
    connection: &mut Connection,
    framing: Framing,
    sink: &mut Sink,
    meter: &Meter,
) -> Result<bool, GetError> {
    match framing {
        Framing::Length(length) => receive_length(connection, length, sink, meter).await?,
        Framing::Chunked => chunked::receive(connection, sink, meter).await?,
        Framing::UntilClose => {
            write_buffered(connection, u64::MAX, sink, meter).await?;
            movement::receive(connection, sink, None, meter).await?;
            return Ok(false);
        }
    }
    match connection.unexpected_input() {
        UnexpectedInput::None => Ok(true),
        UnexpectedInput::End => Ok(false),
        UnexpectedInput::Bytes => Err(GetError::LongBody),
    }
}

async fn receive_length(
    connection: &mut Connection,
    length: u64,
    sink: &mut Sink,
    meter: &Meter,
) -> Result<(), GetError> {
    let mut got = write_buffered(connection, length, sink, meter).await?;
    if got < length {
        got += movement::receive(connection, sink, Some(length - got), meter).await?;
    }
    if got < length {
        return Err(GetError::ShortBody {
            got,
            expected: length,
        });
    }
    Ok(())
}

/// Writes bytes that have arrived with the head, at most `max`. Returns their number.
async fn write_buffered(
    connection: &mut Connection,
    max: u64,
    sink: &mut Sink,
    meter: &Meter,
) -> Result<u64, GetError> {
    let bytes = connection.buffered();
    let len = usize::try_from(max).map_or(bytes.len(), |max| bytes.len().min(max));
    if len > 0 {
        sink.write_all(&bytes[..len]).await?;
        meter.moved(uncopied::Mechanism::Copy, len as u64);
        connection.consume(len);
    }
    Ok(len as u64)
}
