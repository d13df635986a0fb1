//! A file's bytes on their way: sent from the file, loaded first if they are not in memory.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use uncopied::arena::FileMapping;
use uncopied::policy::{FilePlanInput, Length, Plan, SourceKind, plan_file};
use uncopied::{Errno, Progress, Side, Support, Transfer, residency, zero_copy_send_enabled};

use super::{ConnectionSocket, FileSlice, Stream};

/// A send of a file's bytes, in progress.
#[derive(Debug)]
pub(super) struct FileSend {
    mapping: FileMapping,
    transfer: Transfer,
    loading: Option<JoinHandle<()>>,
    /// Whether partial packets are held back until the end.
    is_corked: bool,
}

/// The least length of a file's bytes that are sent corked (`tcp(7)`: TCP_CORK), in full packets up
/// to the last. `sendfile` moves 64 KiB at a time, and where the socket is full in between, the
/// rest of a packet would be sent by itself. In runs at separate times, each against nginx, corking
/// saves about a tenth of the CPU time at 16 MiB and some at 1 MiB; at 256 KiB the gain is within
/// noise.
const CORK_MIN_BYTES: usize = 512 << 10;

impl Stream {
    pub(super) fn poll_send_file(
        &mut self,
        cx: &mut Context<'_>,
        slice: FileSlice,
    ) -> Poll<io::Result<usize>> {
        let mut send = self.resume_or_start_send(slice);
        let sent = self.poll_steps(cx, &mut send);
        if matches!(sent, Poll::Ready(Err(_))) || send.transfer.remaining() == Some(0) {
            self.uncork(&send);
        } else {
            self.file_send = Some(Box::new(send));
        }
        sent
    }

    /// The send of these bytes: the one in progress if it is at exactly this position, else a new
    /// one.
    fn resume_or_start_send(&mut self, slice: FileSlice) -> FileSend {
        let FileSlice {
            mapping,
            offset,
            len,
        } = slice;
        let is_this = |send: &mut Box<FileSend>| {
            Arc::ptr_eq(send.mapping.file(), mapping.file())
                && send.transfer.offset() == offset
                && send.transfer.remaining() == Some(len as u64)
        };
        if let Some(send) = self.file_send.take_if(is_this) {
            return *send;
        }
        self.abandon_file_send();
        let is_corked = len >= CORK_MIN_BYTES && self.set_cork(true);
        let length = Length::Exact(len as u64);
        let plan = self.plan(&mapping, length);
        let transfer = Transfer::new(offset, length, plan).with_mapping(&mapping);
        FileSend {
            mapping,
            transfer,
            loading: None,
            is_corked,
        }
    }

    /// Drops the send in progress, and sends the packet that was held back for it.
    pub(super) fn abandon_file_send(&mut self) {
        if let Some(send) = self.file_send.take() {
            self.uncork(&send);
        }
    }

    fn uncork(&self, send: &FileSend) {
        if send.is_corked {
            self.set_cork(false);
        }
    }

    /// Returns whether the socket accepted the option. Only TCP has it.
    fn set_cork(&self, on: bool) -> bool {
        match &self.socket {
            ConnectionSocket::Tcp(socket) => rustix::net::sockopt::set_tcp_cork(socket, on).is_ok(),
            ConnectionSocket::Unix(_) => false,
        }
    }

    fn plan(&self, mapping: &FileMapping, length: Length) -> Plan {
        let support = Support::of_process();
        let zero_copy_enabled = zero_copy_send_enabled();
        let plan = match self.options.forced_for_files {
            Some(forced) if zero_copy_enabled => {
                forced.without(|mechanism| support.refusal(mechanism).is_some())
            }
            _ => {
                let input = FilePlanInput {
                    source: SourceKind::File,
                    length,
                    force_copy: false,
                    zero_copy_enabled,
                };
                plan_file(&input, &support)
            }
        };
        plan.without(|mechanism| mapping.has_refused(mechanism))
    }

    /// Steps until bytes have moved.
    fn poll_steps(&mut self, cx: &mut Context<'_>, send: &mut FileSend) -> Poll<io::Result<usize>> {
        loop {
            if send.poll_cached(cx).is_pending() {
                self.push();
                return Poll::Pending;
            }
            let (mechanism, before) = (send.transfer.mechanism(), send.transfer.report().bytes());
            let socket = self.as_fd();
            let step = || match send.transfer.step(send.mapping.file(), socket) {
                Ok(Progress::Blocked(Side::Sink)) => Err(io::ErrorKind::WouldBlock.into()),
                other => Ok(other),
            };
            match ready!(self.poll_when_writable(cx, step))? {
                // The error carries the transfer's total: the bytes moved before the failure belong
                // to this call.
                Err(error) => {
                    self.count(cx, mechanism, (error.moved() - before) as usize);
                    return Poll::Ready(Err(error.into()));
                }
                Ok(_) => {
                    let moved = (send.transfer.report().bytes() - before) as usize;
                    send.note_refusals();
                    if moved > 0 {
                        self.count(cx, mechanism, moved);
                        return Poll::Ready(Ok(moved));
                    }
                }
            }
        }
    }

    /// Sends at once the bytes that were held back to share a packet with those of a file, because
    /// the disk takes its time.
    fn push(&self) {
        if let ConnectionSocket::Tcp(socket) = &self.socket {
            // Setting the option pushes, even if it is already set (`tcp(7)`). A failure costs
            // 200 ms, but no byte.
            let _ = socket.set_nodelay(true);
        }
    }
}

impl FileSend {
    /// Whether this send waits for the disk.
    pub(super) fn is_loading(&self) -> bool {
        self.loading.is_some()
    }

    /// Ready once the next bytes are in the page cache, as far as the kernel reports it.
    fn poll_cached(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.loading.is_none() {
            let offset = self.transfer.offset();
            let remaining = self.transfer.remaining().unwrap_or(u64::MAX);
            let wanted = offset..offset.saturating_add(remaining);
            let Some(uncached) = residency::first_uncached(&self.mapping, wanted) else {
                return Poll::Ready(());
            };
            let mapping = self.mapping.clone();
            let load = move || residency::prefetch_mapping_blocking(&mapping, uncached);
            let Ok(runtime) = Handle::try_current() else {
                // There is no pool outside of a runtime, so this thread waits for the disk.
                load();
                return Poll::Ready(());
            };
            self.loading = Some(runtime.spawn_blocking(load));
        }
        if let Some(loading) = &mut self.loading {
            // If the runtime shuts down and cancels the load, the step waits for the disk.
            let _ = ready!(Pin::new(loading).poll(cx));
            self.loading = None;
        }
        Poll::Ready(())
    }

    /// Records which mechanisms this kind of file does not support, so that later transfers do not
    /// try them.
    fn note_refusals(&self) {
        for fallback in self.transfer.report().fallbacks() {
            if matches!(
                fallback.errno,
                Errno::INVAL | Errno::OPNOTSUPP | Errno::SPIPE
            ) {
                self.mapping.note_refusal(fallback.from);
            }
        }
    }
}
