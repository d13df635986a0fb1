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

use super::{InFile, Socket, Stream};

/// A file's bytes on their way.
#[derive(Debug)]
pub(super) struct Sending {
    mapping: FileMapping,
    transfer: Transfer,
    loading: Option<JoinHandle<()>>,
    /// Partial packets are held back until the end.
    is_corked: bool,
}

/// From this many bytes on, a file's bytes are sent corked (`tcp(7)`: TCP_CORK), in whole packets up to the
/// last. `sendfile` takes them 64 KiB at a time, and where the socket is full in between, the rest of a
/// packet would go by itself. Runs apart in time, each against nginx: about a tenth less CPU at 16 MiB, some at
/// 1 MiB, no gain to be told from noise at 256 KiB.
const CORKED: usize = 512 << 10;

impl Stream {
    pub(super) fn poll_send_file(
        &mut self,
        cx: &mut Context<'_>,
        found: InFile,
    ) -> Poll<io::Result<usize>> {
        let mut sending = self.sending_of(found);
        let sent = self.poll_steps(cx, &mut sending);
        if matches!(sent, Poll::Ready(Err(_))) || sending.transfer.remaining() == Some(0) {
            self.uncork(&sending);
        } else {
            self.sending = Some(Box::new(sending));
        }
        sent
    }

    /// The transfer of these bytes: the one under way, if it stands exactly here.
    fn sending_of(&mut self, found: InFile) -> Sending {
        let InFile {
            mapping,
            offset,
            len,
        } = found;
        let is_this = |sending: &mut Box<Sending>| {
            Arc::ptr_eq(sending.mapping.file(), mapping.file())
                && sending.transfer.offset() == offset
                && sending.transfer.remaining() == Some(len as u64)
        };
        if let Some(sending) = self.sending.take_if(is_this) {
            return *sending;
        }
        self.end_sending();
        let is_corked = len >= CORKED && self.set_cork(true);
        let length = Length::Exact(len as u64);
        let plan = self.plan(&mapping, length);
        let transfer = Transfer::new(offset, length, plan).with_mapping(&mapping);
        Sending {
            mapping,
            transfer,
            loading: None,
            is_corked,
        }
    }

    /// Forgets the transfer under way, and sends what was held back for it.
    pub(super) fn end_sending(&mut self) {
        if let Some(sending) = self.sending.take() {
            self.uncork(&sending);
        }
    }

    fn uncork(&self, sending: &Sending) {
        if sending.is_corked {
            self.set_cork(false);
        }
    }

    /// Answers whether the socket now does as told. Only TCP knows of it.
    fn set_cork(&self, on: bool) -> bool {
        match &self.socket {
            Socket::Tcp(socket) => rustix::net::sockopt::set_tcp_cork(socket, on).is_ok(),
            Socket::Unix(_) => false,
        }
    }

    fn plan(&self, mapping: &FileMapping, length: Length) -> Plan {
        let support = Support::of_process();
        let zero_copy_enabled = zero_copy_send_enabled();
        let plan = match self.options.for_files {
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
    fn poll_steps(
        &mut self,
        cx: &mut Context<'_>,
        sending: &mut Sending,
    ) -> Poll<io::Result<usize>> {
        loop {
            if sending.poll_resident(cx).is_pending() {
                self.push();
                return Poll::Pending;
            }
            let (mechanism, before) = (
                sending.transfer.mechanism(),
                sending.transfer.report().bytes(),
            );
            let socket = self.as_fd();
            let step = || match sending.transfer.step(sending.mapping.file(), socket) {
                Ok(Progress::Blocked(Side::Sink)) => Err(io::ErrorKind::WouldBlock.into()),
                other => Ok(other),
            };
            match ready!(self.poll_when_writable(cx, step))? {
                // Its count so far is in the report: bytes before the failure belong to this call.
                Err(error) => {
                    self.count(cx, mechanism, (error.moved() - before) as usize);
                    return Poll::Ready(Err(error.into()));
                }
                Ok(_) => {
                    let moved = (sending.transfer.report().bytes() - before) as usize;
                    sending.note_refusals();
                    if moved > 0 {
                        self.count(cx, mechanism, moved);
                        return Poll::Ready(Ok(moved));
                    }
                }
            }
        }
    }

    /// Sends at once what was held back for the bytes of a file to share its packet: the disk takes
    /// its time.
    fn push(&self) {
        if let Socket::Tcp(socket) = &self.socket {
            // Setting it pushes, set or not (`tcp(7)`). A refusal costs 200 ms, not a byte.
            let _ = socket.set_nodelay(true);
        }
    }
}

impl Sending {
    /// Whether the disk is in the way.
    pub(super) fn is_loading(&self) -> bool {
        self.loading.is_some()
    }

    /// Ready once the next bytes are in the page cache, as far as anybody can tell.
    fn poll_resident(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.loading.is_none() {
            let offset = self.transfer.offset();
            let left = self.transfer.remaining().unwrap_or(u64::MAX);
            let wanted = offset..offset.saturating_add(left);
            let Some(cold) = residency::first_uncached(&self.mapping, wanted) else {
                return Poll::Ready(());
            };
            let mapping = self.mapping.clone();
            let load = move || residency::prefetch_mapping_blocking(&mapping, cold);
            let Ok(runtime) = Handle::try_current() else {
                // Outside of a runtime there is no pool: the disk is waited for here.
                load();
                return Poll::Ready(());
            };
            self.loading = Some(runtime.spawn_blocking(load));
        }
        if let Some(loading) = &mut self.loading {
            // A load that was cut off, by the runtime's end, leaves the step to wait for the disk.
            let _ = ready!(Pin::new(loading).poll(cx));
            self.loading = None;
        }
        Poll::Ready(())
    }

    /// What the file's own kind cannot do, later transfers need not try.
    fn note_refusals(&self) {
        for step in self.transfer.report().fallbacks() {
            if matches!(step.errno, Errno::INVAL | Errno::OPNOTSUPP | Errno::SPIPE) {
                self.mapping.note_refusal(step.from);
            }
        }
    }
}
