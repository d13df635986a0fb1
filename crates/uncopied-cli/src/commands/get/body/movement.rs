//! Moves the bytes of a body from the socket to the sink. All bytes except those that arrive with a
//! head, or in small chunks, go this way.

use uncopied::Mechanism;

use super::super::client::{Connection, PIECE_BYTES};
use super::super::error::GetError;
use super::super::meter::Meter;
use super::super::sink::Sink;

/// Moves `length` bytes, or all bytes until the end of the stream. Returns the number of bytes
/// moved, which is less than `length` if the stream ends before. The buffer of the connection must
/// be empty.
///
/// # Errors
///
/// The connection or the sink fails. All bytes that were received before have been written.
pub(super) async fn receive(
    connection: &mut Connection,
    sink: &mut Sink,
    length: Option<u64>,
    meter: &Meter,
) -> Result<u64, GetError> {
    let mut moved = 0;
    while length.is_none_or(|length| moved < length) {
        let want = length.map_or(PIECE_BYTES as u64, |length| length - moved);
        let want = meter.allowance(want).await;
        let piece = connection.receive_piece(want).await?;
        if piece.is_empty() {
            break;
        }
        let len = piece.len() as u64;
        sink.write_all(piece).await?;
        meter.moved(Mechanism::Copy, len);
        moved += len;
    }
    Ok(moved)
}
