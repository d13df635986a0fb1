//! Sends responses: the head and a body in memory with one system call if possible, and file data
//! from the file.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice, Write as _};
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use http::StatusCode;
use uncopied::policy::{Length, Mechanism};
use uncopied::{Progress, Side, Transfer, residency};
use uncopied_http::{
    BodyPart, CORKED_FILE_MIN_BYTES, FileResponse, OpenFile, StreamOptions, Totals,
};

use super::date::write_date;
use super::socket::Socket;

/// The maximum length of a body in memory that is copied behind its head, so that both can be sent
/// as one slice. For a longer body, that copy costs more than a second slice.
const MAX_APPENDED_BYTES: usize = 8 << 10;

/// The number of bytes of a file after which a connection lets others of its thread continue, and
/// for which it is checked whether they are in the page cache.
const MAX_TURN_BYTES: u64 = 2 << 20;

thread_local! {
    /// The head that is being sent, so that no response needs memory of its own for its head.
    static HEAD: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What the response says about the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionOption {
    /// Nothing: an HTTP/1.1 connection stays open.
    None,
    /// `keep-alive`: an HTTP/1.0 connection stays open, because the client has asked for that.
    KeepAlive,
    /// `close`: this is the last response.
    Close,
}

/// How responses are sent, and where the bytes are counted.
pub(super) struct Sending<'a> {
    pub(super) options: &'a StreamOptions,
    pub(super) totals: &'a Totals,
}

/// The bytes of a response that the socket has accepted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SentResponse {
    /// The number of bytes of the head that are still to be sent.
    head_left: u64,
    /// The number of body bytes that the socket has accepted.
    pub(super) body_bytes: u64,
    /// The mechanism that has sent the body, or its last part.
    pub(super) mechanism: Option<Mechanism>,
}

impl SentResponse {
    fn add(&mut self, mechanism: Mechanism, bytes: u64) {
        let of_head = bytes.min(self.head_left);
        self.head_left -= of_head;
        if bytes > of_head {
            self.body_bytes += bytes - of_head;
            self.mechanism = Some(mechanism);
        }
    }
}

/// What is left of a response after the first attempt at sending it.
pub(super) struct Unsent {
    head: Bytes,
    body: Bytes,
    parts: VecDeque<BodyPart>,
}

impl Unsent {
    /// Whether sending the rest may take long, if the peer is slow.
    pub(super) fn is_long(&self) -> bool {
        self.parts
            .iter()
            .any(|part| matches!(part, BodyPart::File(_, range) if is_corked(range)))
    }
}

impl Sending<'_> {
    /// Sends as much of a response as the socket accepts at once, which is all of it in most cases
    /// if the body is in memory. That takes one system call and no memory. Returns the rest, for
    /// [`finish`](Self::finish).
    ///
    /// `sent` is updated as the socket accepts bytes.
    ///
    /// # Errors
    ///
    /// If the socket fails.
    pub(super) fn start(
        &self,
        socket: &Socket,
        response: FileResponse,
        option: ConnectionOption,
        sent: &mut SentResponse,
    ) -> io::Result<Option<Unsent>> {
        HEAD.with_borrow_mut(|head| {
            head.clear();
            write_head(head, &response, option);
            sent.head_left = head.len() as u64;
            let mut parts = response.into_body().into_parts().peekable();
            let mut body = match parts.next_if(|part| matches!(part, BodyPart::Memory(_))) {
                Some(BodyPart::Memory(bytes)) => bytes,
                _ => Bytes::new(),
            };
            if body.len() <= MAX_APPENDED_BYTES {
                head.extend_from_slice(&body);
                body.clear();
            }
            let more = match parts.peek() {
                // The cork holds the head back, too.
                Some(BodyPart::File(_, range)) if is_corked(range) => !socket.set_cork(true),
                part => part.is_some(),
            };
            let slices = [IoSlice::new(head), IoSlice::new(&body)];
            let slices = &slices[..if body.is_empty() { 1 } else { 2 }];
            let accepted = socket.try_send(slices, more)?;
            self.count(sent, Mechanism::Copy, accepted as u64);
            let of_head = accepted.min(head.len());
            body.advance(accepted - of_head);
            if of_head == head.len() && body.is_empty() && !more && parts.peek().is_none() {
                return Ok(None);
            }
            Ok(Some(Unsent {
                head: Bytes::copy_from_slice(&head[of_head..]),
                body,
                parts: parts.collect(),
            }))
        })
    }

    /// Sends the rest of a response. `sent` is updated as the socket accepts bytes, so it is valid
    /// even after an error, or if this future is dropped.
    ///
    /// # Errors
    ///
    /// If the socket fails, or the file is shorter than promised. In both cases the connection must
    /// be closed, because the response is incomplete.
    pub(super) async fn finish(
        &self,
        socket: &mut Socket,
        unsent: Unsent,
        sent: &mut SentResponse,
    ) -> io::Result<()> {
        let Unsent {
            mut head,
            mut body,
            mut parts,
        } = unsent;
        for bytes in [&mut head, &mut body] {
            self.send_memory(socket, bytes, !parts.is_empty(), sent)
                .await?;
        }
        while let Some(part) = parts.pop_front() {
            match part {
                BodyPart::Memory(mut bytes) => {
                    self.send_memory(socket, &mut bytes, !parts.is_empty(), sent)
                        .await?;
                }
                BodyPart::File(file, range) => {
                    let is_corked = is_corked(&range) && socket.set_cork(true);
                    let outcome = self.send_file(socket, &file, range, sent).await;
                    if is_corked {
                        socket.set_cork(false);
                    }
                    outcome?;
                }
                _ => return Err(io::ErrorKind::Unsupported.into()),
            }
        }
        Ok(())
    }

    async fn send_memory(
        &self,
        socket: &mut Socket,
        bytes: &mut Bytes,
        more: bool,
        sent: &mut SentResponse,
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            let accepted = poll_fn(|cx| {
                socket.poll_write(cx, |fd| {
                    uncopied::send_vectored(fd, &[IoSlice::new(bytes)], more)
                })
            });
            let accepted = accepted.await?;
            self.count(sent, Mechanism::Copy, accepted as u64);
            bytes.advance(accepted);
        }
        Ok(())
    }

    /// Sends a range of a file. Bytes that are not in the page cache are first read on tokio's
    /// blocking pool, so that other connections of the thread can continue.
    async fn send_file(
        &self,
        socket: &mut Socket,
        open_file: &OpenFile,
        range: Range<u64>,
        sent: &mut SentResponse,
    ) -> io::Result<()> {
        let Some(file) = open_file.file() else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let length = Length::Exact(range.end - range.start);
        let plan = self.options.file_plan(length);
        let plan = plan.without(|mechanism| open_file.has_refused(mechanism));
        let mut transfer = Transfer::new(range.start, length, plan);
        let mut next_check = range.start;
        loop {
            if transfer.offset() >= next_check {
                if next_check > range.start {
                    tokio::task::yield_now().await;
                }
                let turn = transfer.remaining().unwrap_or(0).min(MAX_TURN_BYTES);
                next_check = transfer.offset() + turn;
                if !open_file.is_resident(transfer.offset()..next_check) {
                    socket.push();
                    let (file, offset) = (Arc::clone(file), transfer.offset());
                    let load = move || residency::prefetch_blocking(&*file, offset, turn);
                    // This fails only if the runtime is shutting down. The next step then waits
                    // for the disk instead.
                    let _ = tokio::task::spawn_blocking(load).await;
                }
            }
            let (mechanism, before) = (transfer.mechanism(), transfer.report().bytes());
            let step = poll_fn(|cx| {
                socket.poll_write(cx, |fd| match transfer.step(file, fd) {
                    Ok(Progress::Blocked(Side::Sink)) => Err(io::ErrorKind::WouldBlock.into()),
                    other => Ok(other),
                })
            });
            match step.await? {
                Ok(progress) => {
                    let moved = transfer.report().bytes() - before;
                    self.count(sent, mechanism, moved);
                    if transfer.mechanism() != mechanism {
                        note_refusals(open_file, &transfer);
                    }
                    if progress == Progress::Done {
                        return Ok(());
                    }
                }
                // `moved` counts all bytes of the transfer. Those of earlier steps have already
                // been counted.
                Err(error) => {
                    self.count(sent, mechanism, error.moved() - before);
                    return Err(error.into());
                }
            }
        }
    }

    fn count(&self, sent: &mut SentResponse, mechanism: Mechanism, bytes: u64) {
        self.totals.add(mechanism, bytes);
        sent.add(mechanism, bytes);
    }
}

/// Records which mechanisms have failed as unsupported for this file, so that later responses do
/// not try them.
fn note_refusals(file: &OpenFile, transfer: &Transfer) {
    for fallback in transfer.report().fallbacks() {
        if fallback.concerns_descriptors() {
            file.note_refusal(fallback.from);
        }
    }
}

fn is_corked(range: &Range<u64>) -> bool {
    range.end - range.start >= CORKED_FILE_MIN_BYTES
}

/// Writes the status line and the header fields, and the empty line after them.
fn write_head(head: &mut Vec<u8>, response: &FileResponse, option: ConnectionOption) {
    match response.status() {
        StatusCode::OK => head.extend_from_slice(b"HTTP/1.1 200 OK\r\ndate: "),
        // Writing to a `Vec` cannot fail. The `Display` of a status includes its reason.
        status => drop(write!(head, "HTTP/1.1 {status}\r\ndate: ")),
    }
    write_date(head);
    head.extend_from_slice(match option {
        ConnectionOption::None => b"\r\n",
        ConnectionOption::KeepAlive => b"\r\nconnection: keep-alive\r\n",
        ConnectionOption::Close => b"\r\nconnection: close\r\n",
    });
    response.write_fields(head);
    head.extend_from_slice(b"\r\n");
}
