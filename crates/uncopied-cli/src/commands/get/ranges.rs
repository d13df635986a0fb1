//! One file over several connections (`--connections`).
//!
//! The first request asks for the first piece of the file, which shows whether the server supports
//! ranges, and how long the file is. The rest is divided into pieces. Each connection fetches one
//! piece after the other, so a slow one delays the others by at most one piece.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::task::JoinSet;

use super::body::receive_body;
use super::client::{Response, Wanted};
use super::error::GetError;
use super::fetch::{Context, Job, checked_range, framing_of, version_of, wait_for_retry};
use super::file::{Partial, Version};
use super::response::{Framing, Head};
use super::retry::status_error;
use super::sink::Sink;

/// The length of the first piece, and the least of any other, in bytes.
const MIN_PIECE_BYTES: u64 = 1 << 20;
/// The most that a connection fetches with one request, in bytes.
const MAX_PIECE_BYTES: u64 = 64 << 20;
/// How many pieces there are for each connection, unless they would be too small or too large.
const PIECES_PER_CONNECTION: u64 = 4;

/// How it went.
pub(super) enum Outcome {
    /// All bytes have been received.
    Whole,
    /// The server ignores ranges, and this response has the whole file.
    Ignored(Box<Response>),
    /// The file has to be fetched as a whole.
    Unsupported,
}

/// Fetches all bytes of a file that are missing.
///
/// # Errors
///
/// A piece cannot be fetched. Those that were received stay usable, unless the file has changed.
///
/// # Cancellation
///
/// Dropping the future closes all connections of the file.
pub(super) async fn fetch(
    context: &Rc<Context>,
    job: &Rc<Job>,
    partial: &Rc<Partial>,
) -> Result<Outcome, GetError> {
    let version = partial.version();
    let is_known = version.total.is_some() && version.validator.is_some();
    if !is_known && let Some(other) = begin(context, job, partial).await? {
        return Ok(other);
    }
    let version = partial.version();
    let Some(total) = version.total else {
        return Ok(Outcome::Unsupported);
    };
    partial.preallocate(total)?;
    partial.record()?;
    job.size.set(Some(total));
    context
        .progress
        .set_position(partial.usable().count(), Some(total));
    let connections = u64::from(context.settings.connections);
    let work = Rc::new(Work {
        pieces: RefCell::new(pieces(&partial.usable().missing(0, total), connections)),
        context: Rc::clone(context),
        job: Rc::clone(job),
        partial: Rc::clone(partial),
        version,
    });
    let mut workers = JoinSet::new();
    for _ in 0..connections.min(work.pieces.borrow().len() as u64) {
        workers.spawn_local(Rc::clone(&work).run());
    }
    let all = async {
        // The first failure ends the others, because dropping the set stops them.
        while let Some(ended) = workers.join_next().await {
            match ended {
                Ok(outcome) => outcome?,
                Err(error) => return Err(GetError::Receive(std::io::Error::other(error))),
            }
        }
        Ok(Outcome::Whole)
    };
    tokio::select! {
        biased;
        error = partial.keep_records() => Err(error),
        outcome = all => match outcome {
            Err(GetError::NoParts) => Ok(Outcome::Unsupported),
            outcome => outcome,
        },
    }
}

fn is_same_version(head: &Head, version: &Version) -> bool {
    let validator = version.validator.as_ref();
    head.content_length() == version.total
        && validator.is_some_and(|validator| head.matches(validator))
}

/// Fetches the first piece. Returns what to do instead if the server does not support ranges, or
/// if pieces of two versions of the file could not be told apart.
async fn begin(
    context: &Rc<Context>,
    job: &Rc<Job>,
    partial: &Rc<Partial>,
) -> Result<Option<Outcome>, GetError> {
    let wanted = Wanted {
        range: Some((0, Some(MIN_PIECE_BYTES))),
        ..Wanted::default()
    };
    let mut response = context.client.fetch(&job.url, &wanted).await?;
    job.note_response(&response);
    match response.head.status {
        200 => return Ok(Some(Outcome::Ignored(Box::new(response)))),
        206 => {}
        // The file is empty.
        416 => return Ok(Some(Outcome::Unsupported)),
        _ => return Err(status_error(&response.head)),
    }
    let range = checked_range(&response.head, 0, &Version::default())?;
    let version = Version {
        total: range.total,
        ..version_of(&response.head)
    };
    if version.total.is_none() || version.validator.is_none() || range.end > MIN_PIECE_BYTES {
        return Ok(Some(Outcome::Unsupported));
    }
    partial.restart(version)?;
    context.progress.set_position(0, range.total);
    let framing = framing_of(&response.head, range);
    receive(
        context,
        job,
        partial,
        &mut response,
        (0, range.end),
        framing,
    )
    .await?;
    Ok(keep(context, response, framing))
}

/// Keeps the connection of a piece that has been received.
fn keep(context: &Context, response: Response, framing: Framing) -> Option<Outcome> {
    if response.head.keeps_alive() && framing == response.head.framing() {
        context.client.keep(response.connection);
    }
    None
}

/// Receives the body with the bytes from `first` up to but not including `end`.
async fn receive(
    context: &Rc<Context>,
    job: &Rc<Job>,
    partial: &Rc<Partial>,
    response: &mut Response,
    (first, end): (u64, u64),
    framing: Framing,
) -> Result<(), GetError> {
    // With a chunked body, the length of a range is known only at its end, when bytes beyond it
    // would have been written already.
    if framing == Framing::Chunked {
        return Err(GetError::WrongRange("a chunked range".to_owned()));
    }
    let mut sink = Sink::File(partial.sink(first, context.settings.direct)?);
    let outcome = receive_body(&mut response.connection, framing, &mut sink, &job.meter).await;
    let flushed = sink.flush();
    outcome?;
    flushed?;
    match partial.written().missing(first, end).first() {
        None => Ok(()),
        Some((got, _)) => Err(GetError::ShortBody {
            got: got - first,
            expected: end - first,
        }),
    }
}

/// Divides what is missing into pieces.
fn pieces(missing: &[(u64, u64)], connections: u64) -> VecDeque<(u64, u64)> {
    let total: u64 = missing.iter().map(|(first, end)| end - first).sum();
    let len = total.div_ceil(connections * PIECES_PER_CONNECTION);
    let len = len.clamp(MIN_PIECE_BYTES, MAX_PIECE_BYTES);
    let mut pieces = VecDeque::new();
    for (first, end) in missing {
        let mut at = *first;
        while at < *end {
            let next = end.min(&at.saturating_add(len)).to_owned();
            pieces.push_back((at, next));
            at = next;
        }
    }
    pieces
}

/// What the connections of a file share.
struct Work {
    pieces: RefCell<VecDeque<(u64, u64)>>,
    context: Rc<Context>,
    job: Rc<Job>,
    partial: Rc<Partial>,
    version: Version,
}

impl Work {
    /// Fetches pieces until there is none left.
    async fn run(self: Rc<Self>) -> Result<(), GetError> {
        loop {
            let piece = self.pieces.borrow_mut().pop_front();
            match piece {
                Some(piece) => self.fetch_piece(piece).await?,
                None => return Ok(()),
            }
        }
    }

    async fn fetch_piece(&self, (first, end): (u64, u64)) -> Result<(), GetError> {
        let mut retries = self.context.retries();
        let missing = || self.partial.written().missing(first, end);
        while let Some((at, next)) = missing().first().copied() {
            let Err(error) = self.attempt(at, next).await else {
                continue;
            };
            // Everything has to be fetched again, which is not up to one piece.
            let is_common = matches!(error, GetError::Changed);
            let progressed = missing().first() != Some(&(at, next));
            match retries.pause(&error, true, progressed) {
                Some(pause) if !is_common => {
                    wait_for_retry(&self.context, &self.job, &error, pause).await;
                }
                _ if error.is_transient(true) && !is_common => {
                    return Err(GetError::GivenUp(Box::new(error)));
                }
                _ => return Err(error),
            }
        }
        Ok(())
    }

    async fn attempt(&self, first: u64, end: u64) -> Result<(), GetError> {
        let wanted = Wanted {
            range: Some((first, Some(end))),
            if_range: self.version.validator.as_ref(),
            ..Wanted::default()
        };
        let mut response = self.context.client.fetch(&self.job.url, &wanted).await?;
        self.job.note_response(&response);
        match response.head.status {
            206 => {}
            // Some servers do not trust the modification time of a file that is new.
            200 if is_same_version(&response.head, &self.version) => {
                return Err(GetError::NoParts);
            }
            200 | 416 => return Err(GetError::Changed),
            _ => return Err(status_error(&response.head)),
        }
        let range = checked_range(&response.head, first, &self.version)?;
        if range.end > end {
            return Err(GetError::WrongRange(format!(
                "up to {} instead of {end}",
                range.end
            )));
        }
        let framing = framing_of(&response.head, range);
        let part = (first, range.end);
        receive(
            &self.context,
            &self.job,
            &self.partial,
            &mut response,
            part,
            framing,
        )
        .await?;
        keep(&self.context, response, framing);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_what_is_missing_and_nothing_else() {
        let mib = 1 << 20;
        for (missing, connections, count) in [
            (vec![], 4, 0),
            (vec![(5, 6)], 4, 1),
            (vec![(mib, 3 * mib + 1)], 4, 3),
            (vec![(0, 1000 * mib)], 4, 16),
            (vec![(0, 10 << 30)], 1, 160),
            (vec![(0, mib), (2 * mib, 2 * mib + 7)], 2, 2),
        ] {
            let pieces = pieces(&missing, connections);
            assert_eq!(pieces.len(), count, "{missing:?}");
            let mut covered = super::super::file::Written::default();
            let sum: u64 = pieces.iter().map(|(first, end)| end - first).sum();
            pieces
                .iter()
                .for_each(|(first, end)| covered.add(*first, *end));
            assert_eq!(covered.count(), sum, "no piece overlaps another");
            assert_eq!(
                sum,
                missing.iter().map(|(first, end)| end - first).sum::<u64>()
            );
            for (first, end) in &missing {
                assert!(covered.missing(*first, *end).is_empty());
            }
        }
    }
}
