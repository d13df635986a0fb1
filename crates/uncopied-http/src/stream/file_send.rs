//! Sends file data from the file, after loading it into the page cache if necessary.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use uncopied::arena::FileMapping;
use uncopied::policy::Length;
use uncopied::{Progress, Side, Transfer, residency};

use super::{FileSlice, Stream};

/// An in-progress send of bytes from a file.
#[derive(Debug)]
pub(super) struct FileSend {
    mapping: FileMapping,
    transfer: Transfer,
    loading: Option<JoinHandle<()>>,
    /// Whether partial packets are held back until the end of the send; see
    /// [`CORKED_FILE_MIN_BYTES`].
    is_corked: bool,
}

/// The minimum length of file data that is sent corked. A corked socket (`TCP_CORK`, see `tcp(7)`)
/// sends only full packets until it is uncorked at the end. Within one call, `sendfile` moves 64
/// KiB at a time. If the socket's send buffer fills up after such a piece, a socket without the
/// cork sends the incomplete last packet of the piece on its own. Benchmark runs with and without
/// the cork, made at different times and each compared with nginx, show that corking saves about a
/// tenth of the CPU time at 16 MiB and some at 1 MiB; at 256 KiB the gain is within the noise.
pub const CORKED_FILE_MIN_BYTES: u64 = 512 << 10;

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

    /// Returns the send in progress, if it is for this file and its remaining bytes are exactly
    /// those of `slice`. Otherwise starts a new send.
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
        let is_corked = len as u64 >= CORKED_FILE_MIN_BYTES && self.socket.set_cork(true);
        let length = Length::Exact(len as u64);
        let plan = self.options.file_plan(length);
        let plan = plan.without(|mechanism| mapping.has_refused(mechanism));
        let transfer = Transfer::new(offset, length, plan);
        FileSend {
            mapping,
            transfer,
            loading: None,
            is_corked,
        }
    }

    /// Drops the send in progress, if there is one, and sends the partial packet that it held back.
    pub(super) fn abandon_file_send(&mut self) {
        if let Some(send) = self.file_send.take() {
            self.uncork(&send);
        }
    }

    fn uncork(&self, send: &FileSend) {
        if send.is_corked {
            self.socket.set_cork(false);
        }
    }

    /// Steps the transfer until a step has moved bytes.
    fn poll_steps(&mut self, cx: &mut Context<'_>, send: &mut FileSend) -> Poll<io::Result<usize>> {
        loop {
            if send.poll_cached(cx).is_pending() {
                self.socket.push();
                return Poll::Pending;
            }
            let (mechanism, before) = (send.transfer.mechanism(), send.transfer.report().bytes());
            let socket = self.as_fd();
            let step = || match send.transfer.step(send.mapping.file(), socket) {
                Ok(Progress::Blocked(Side::Sink)) => Err(io::ErrorKind::WouldBlock.into()),
                other => Ok(other),
            };
            match ready!(self.poll_when_writable(cx, step))? {
                // `error.moved()` counts all bytes of the transfer. Those moved by earlier steps
                // have already been counted.
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
}

impl FileSend {
    /// Becomes ready once the next bytes are in the page cache: at once if the kernel reports them
    /// as cached, otherwise after loading them on the blocking pool.
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
                // There is no pool outside a runtime, so this thread waits for the disk.
                load();
                return Poll::Ready(());
            };
            self.loading = Some(runtime.spawn_blocking(load));
        }
        if let Some(loading) = &mut self.loading {
            // The load fails only if the runtime is shutting down. The next step then waits for the
            // disk instead.
            let _ = ready!(Pin::new(loading).poll(cx));
            self.loading = None;
        }
        Poll::Ready(())
    }

    /// Records which mechanisms have failed as unsupported for this file, so that later transfers
    /// of the file do not try them.
    fn note_refusals(&self) {
        for fallback in self.transfer.report().fallbacks() {
            if fallback.concerns_descriptors() {
                self.mapping.note_refusal(fallback.from);
            }
        }
    }
}
