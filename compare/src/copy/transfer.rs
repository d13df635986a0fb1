//! One transfer: starts the process of a contender, and receives what it sends.

use std::time::Instant;

use super::contender::FileSender;
use super::file::SourceFile;
use super::job::TransferReport;
use crate::error::Error;
use crate::loopback::receiver::{Incoming, Receiver};
use crate::loopback::session::Session;
use crate::measure::{Snapshot, Usage};
use crate::process::PinnedChild;

/// Where contenders send to, one after the other.
pub(super) struct Transfers<'a> {
    /// The run.
    pub(super) session: &'a Session,
    /// The receiver.
    pub(super) receiver: Receiver,
    /// The congestion control of both sides.
    pub(super) congestion: &'a str,
}

impl Transfers<'_> {
    /// Has a contender send the file, and compares every byte with `expected`.
    ///
    /// # Errors
    ///
    /// [`Error::WrongResult`] if wrong bytes arrive, or a wrong number of them.
    pub(super) fn verify(
        &mut self,
        contender: &FileSender,
        file: &SourceFile,
        expected: &[u8],
    ) -> Result<(), Error> {
        self.transfer(contender, file, |incoming, sender| {
            sender.close_input();
            incoming.compare(expected)?;
            receive_rest(incoming, file.size)
        })?;
        Ok(())
    }

    /// Has a contender send the file, counts the bytes, and measures what the transfer uses.
    ///
    /// # Errors
    ///
    /// [`Error::WrongResult`] if a wrong number of bytes arrives.
    pub(super) fn measure(
        &mut self,
        contender: &FileSender,
        file: &SourceFile,
    ) -> Result<Usage, Error> {
        file.warm_page_cache()?;
        let (usage, report) = self.transfer(contender, file, |incoming, sender| {
            let before = Snapshot::take(sender.id(), 0)?;
            let start = Instant::now();
            sender.close_input();
            receive_rest(incoming, file.size)?;
            let seconds = start.elapsed().as_secs_f64();
            let after = Snapshot::take(sender.id(), incoming.received_bytes())?;
            Ok(Usage {
                seconds,
                ..after.since(&before)
            })
        })?;
        // The kernel's figure for another process is in clock ticks, which are too coarse here.
        Ok(Usage {
            process_cpu_seconds: report.cpu_seconds,
            ..usage
        })
    }

    /// Starts the contender's process, and calls `receive` once it has connected. The process sends
    /// after its input is closed. Checks the contender's report.
    fn transfer<T>(
        &mut self,
        contender: &FileSender,
        file: &SourceFile,
        receive: impl FnOnce(&mut Incoming<'_>, &mut PinnedChild) -> Result<T, Error>,
    ) -> Result<(T, TransferReport), Error> {
        let port = self.receiver.port()?.to_string();
        let command = contender.command(&file.path, &port, self.congestion)?;
        let receiver = &mut self.receiver;
        let (received, printed) = self.session.run_sender(
            &command,
            |sender| {
                let stream = receiver.accept(sender)?;
                receive(&mut receiver.incoming(stream), sender)
            },
            |_| None,
        )?;
        let report = TransferReport::parse(&printed)?;
        report.check(file.size, self.congestion)?;
        Ok((received, report))
    }
}

/// Receives until the sender ends the connection.
///
/// # Errors
///
/// [`Error::WrongResult`] unless `file_bytes` have arrived then.
fn receive_rest(incoming: &mut Incoming<'_>, file_bytes: u64) -> Result<(), Error> {
    incoming.discard_to_end()?;
    let received = incoming.received_bytes();
    if received == file_bytes {
        return Ok(());
    }
    Err(Error::WrongResult(format!(
        "{received} bytes arrived of a file of {file_bytes}"
    )))
}
