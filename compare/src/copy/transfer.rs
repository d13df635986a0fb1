//! Makes transfers. For each transfer, starts a contender's process, and receives the file that the
//! process sends.

use std::time::Instant;

use super::contender::FileSender;
use super::file::SourceFile;
use super::job::TransferReport;
use crate::error::Error;
use crate::loopback::receiver::{Incoming, Receiver};
use crate::loopback::session::Session;
use crate::measure::{Snapshot, Usage};
use crate::process::PinnedChild;

/// Makes the contenders' transfers, one after the other, to one receiver.
pub(super) struct Transfers<'a> {
    /// The run that the transfers belong to.
    pub(super) session: &'a Session,
    /// The receiver.
    pub(super) receiver: Receiver,
    /// The congestion control of both sides.
    pub(super) congestion: &'a str,
}

impl Transfers<'_> {
    /// Makes a contender send the file, and compares every byte that arrives with `expected`.
    ///
    /// # Errors
    ///
    /// [`Error::WrongResult`] if the wrong bytes or a wrong number of bytes arrive.
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

    /// Makes a contender send the file, counts the bytes that arrive, and measures the time and the
    /// CPU time of the transfer.
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
        // Use the CPU time that the sender has measured itself. The kernel reports the CPU time of
        // another process only in clock ticks, which are too coarse for one transfer.
        Ok(Usage {
            process_cpu_seconds: report.cpu_seconds,
            ..usage
        })
    }

    /// Starts the contender's process, calls `receive` once the process has connected, and checks
    /// the report that the process prints. The process starts to send when `receive` closes its
    /// standard input.
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
                receive(&mut receiver.incoming(vec![stream])?, sender)
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
/// [`Error::WrongResult`] unless exactly `file_bytes` bytes have arrived over the connection,
/// including those that were received before this call.
fn receive_rest(incoming: &mut Incoming<'_>, file_bytes: u64) -> Result<(), Error> {
    incoming.discard_to_end()?;
    let received = incoming.received_bytes();
    if received == file_bytes {
        return Ok(());
    }
    Err(Error::WrongResult(format!(
        "{received} bytes arrived, but the file has {file_bytes}"
    )))
}
