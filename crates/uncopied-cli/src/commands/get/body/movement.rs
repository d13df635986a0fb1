//! Moves the bytes of a body from the socket to the sink. All bytes except those that arrive with a
//! head, or in small chunks, go this way.

use std::io;

use tokio::io::Interest;
use tokio::net::TcpStream;
use uncopied::policy::Length;
use uncopied::{ErrorKind, Mechanism, Progress, ReceiveFile, ReceiveTransfer, Side};

use super::super::client::{Connection, PIECE_BYTES};
use super::super::error::GetError;
use super::super::meter::Meter;
use super::super::sink::{Sink, Target};

/// Moves `length` bytes, or all bytes until the end of the stream. Returns the number of bytes
/// moved, which is less than `length` if the stream ends before. The buffer of the connection must
/// be empty.
///
/// # Errors
///
/// The connection or the sink fails. All bytes that were received before have been written, except
/// for those that a failed sink has not accepted.
pub(super) async fn receive(
    connection: &mut Connection,
    sink: &mut Sink,
    length: Option<u64>,
    meter: &Meter,
) -> Result<u64, GetError> {
    let mut moved = 0;
    while length.is_none_or(|length| moved < length) {
        let turn = meter.allowance(length.map(|length| length - moved)).await;
        let in_turn =
            if let (Some(target), Some(socket)) = (sink.target(), connection.plain_socket()) {
                transfer(connection, socket, sink, &target, turn, meter).await?
            } else {
                copy(connection, sink, turn, meter).await?
            };
        if in_turn == 0 {
            break;
        }
        moved += in_turn;
    }
    Ok(moved)
}

/// Moves some bytes through the memory of this process. Returns their number, 0 at the end of the
/// stream.
async fn copy(
    connection: &mut Connection,
    sink: &mut Sink,
    turn: Option<u64>,
    meter: &Meter,
) -> Result<u64, GetError> {
    let max = turn.map_or(PIECE_BYTES, |turn| turn.min(PIECE_BYTES as u64) as usize);
    let piece = connection.receive_piece(max).await?;
    let len = piece.len() as u64;
    if len > 0 {
        sink.write_all(piece).await?;
        meter.moved(Mechanism::Copy, len);
    }
    Ok(len)
}

/// Has the kernel move `turn` bytes, or all bytes until the end of the stream. Returns their
/// number, which is less than `turn` if the stream ends before.
async fn transfer(
    connection: &Connection,
    socket: &TcpStream,
    sink: &mut Sink,
    target: &Target,
    turn: Option<u64>,
    meter: &Meter,
) -> Result<u64, GetError> {
    let fd = target.fd();
    let receive = ReceiveFile::new(&fd).length(turn.map_or(Length::UntilEof, Length::Exact));
    let receive = match target {
        Target::File(_, offset) => receive.at(*offset),
        Target::Stream(_) => receive,
    };
    let mut transfer = receive
        .transfer(socket)
        .map_err(|error| failed(error, sink))?;
    let mut counted = [0; Mechanism::SOCKET_TO_FILE.len()];
    loop {
        let step = step(&mut transfer, socket, target);
        for (mechanism, counted) in Mechanism::SOCKET_TO_FILE.into_iter().zip(&mut counted) {
            let bytes = transfer.report().by(mechanism) - *counted;
            if bytes > 0 {
                *counted += bytes;
                sink.advance(bytes);
                meter.moved(mechanism, bytes);
            }
        }
        match step {
            Ok(Progress::Moved(_)) => tokio::task::consume_budget().await,
            Ok(Progress::Blocked(Side::Source)) => connection.readable().await?,
            Ok(Progress::Blocked(Side::Sink)) => {
                let waited = target.writable().await;
                waited.map_err(GetError::file("write to", sink.path()))?;
            }
            Ok(Progress::Done) => return Ok(transfer.report().bytes()),
            Err(error) if matches!(error.kind(), ErrorKind::SourceTooShort { .. }) => {
                return Ok(transfer.report().bytes());
            }
            Err(error) => return Err(failed(error, sink)),
        }
    }
}

/// Makes one step. If the socket has no bytes, the runtime learns of that.
fn step(
    transfer: &mut ReceiveTransfer,
    socket: &TcpStream,
    target: &Target,
) -> Result<Progress, uncopied::Error> {
    let mut failure = None;
    let step = socket.try_io(Interest::READABLE, || {
        match transfer.step(socket, target.fd()) {
            Ok(Progress::Blocked(Side::Source)) => Err(io::ErrorKind::WouldBlock.into()),
            Ok(progress) => Ok(progress),
            Err(error) => {
                failure = Some(error);
                Ok(Progress::Done)
            }
        }
    });
    match (failure, step) {
        (Some(error), _) => Err(error),
        (None, Ok(progress)) => Ok(progress),
        // No other error gets here.
        (None, Err(_)) => Ok(Progress::Blocked(Side::Source)),
    }
}

fn failed(error: uncopied::Error, sink: &Sink) -> GetError {
    let of_sink = matches!(error.kind(), ErrorKind::Sink | ErrorKind::SinkNotSeekable);
    let error = match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => error.into(),
    };
    match (of_sink, sink) {
        (true, Sink::Stream(_)) if error.kind() == io::ErrorKind::BrokenPipe => {
            GetError::ReaderGone
        }
        (true, _) => GetError::file("write", sink.path())(error),
        (false, _) => GetError::Receive(error),
    }
}
