//! Sends pages of the arena to the socket without a copy.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use uncopied::arena::Pages;
use uncopied::policy::{Driver, Mechanism};
use uncopied::{Channel, SendOptions, Tuning, zero_copy_send_enabled};

use super::Stream;
use crate::options::StreamOptions;
use crate::totals::Totals;

/// The minimum length of a slice of pages that is sent with a call of its own, following the plan
/// for pages. Shorter slices are written together with the slices next to them.
///
/// The plan itself may allow zero copy for fewer bytes. The minimum here is higher, because a slice
/// that is sent with a call of its own also costs another call for the slices in front of it.
/// HTTP/2 sends frames of 16 KiB, so with a minimum of 16 KiB, each frame would cost the additional
/// call, even if the plan then copied the frame.
const PAGE_SEND_MIN_BYTES: usize = 32 << 10;

/// The state for sending pages over this connection: what is known about its socket, and which
/// memory the kernel may still read.
#[derive(Debug)]
pub(super) struct PageSender {
    channel: Channel,
    /// How many of the bytes that the kernel copied have already been added to `totals`.
    counted_kernel_copied: u64,
    totals: Arc<Totals>,
}

impl PageSender {
    fn new(socket: BorrowedFd<'_>, options: &StreamOptions) -> Self {
        let mut send = SendOptions::default();
        if let Some(plan) = &options.forced_for_pages {
            send = send.force_mechanisms(plan.mechanisms());
        }
        Self {
            channel: Channel::new(socket, Driver::Tokio, send),
            counted_kernel_copied: 0,
            totals: Arc::clone(&options.totals),
        }
    }

    fn update_totals(&mut self) {
        let known = self.channel.report().kernel_copied();
        self.totals
            .add_kernel_copied(known.saturating_sub(self.counted_kernel_copied));
        self.counted_kernel_copied = known;
    }
}

impl Drop for PageSender {
    fn drop(&mut self) {
        self.update_totals();
    }
}

impl Stream {
    /// Whether this slice of pages is sent with a call of its own.
    pub(super) fn sends_separately(&self, pages: &Pages) -> bool {
        let is_rest = || {
            let sender = self.page_sender.as_ref();
            sender.is_some_and(|sender| sender.channel.goes_on_with(pages))
        };
        let is_copied = || match &self.options.forced_for_pages {
            Some(forced) => forced.mechanisms() == [Mechanism::Copy],
            None => {
                let tuning = Tuning::current();
                let min_bytes = tuning.vmsplice_min_bytes.min(tuning.notified_min_bytes);
                (pages.len() as u64) < min_bytes && !is_rest()
            }
        };
        (pages.len() >= PAGE_SEND_MIN_BYTES || is_rest())
            && zero_copy_send_enabled()
            && !is_copied()
    }

    /// Sends some of the pages. Pages that the kernel may still read stay allocated, even if the
    /// slices, the body and this stream are dropped.
    pub(super) fn poll_send_pages(
        &mut self,
        cx: &mut Context<'_>,
        pages: &Pages,
    ) -> Poll<io::Result<usize>> {
        let mut sender = match self.page_sender.take() {
            Some(sender) => sender,
            None => Box::new(PageSender::new(self.as_fd(), &self.options)),
        };
        let socket = self.as_fd();
        // If the socket is full, the error has the kind `WouldBlock`, so that tokio clears the
        // socket's readiness.
        let sent = self.poll_when_writable(cx, || Ok(sender.channel.try_send(pages, socket)?));
        sender.update_totals();
        self.page_sender = Some(sender);
        let sent = ready!(sent)?;
        for mechanism in Mechanism::MEMORY_TO_SOCKET {
            self.count(cx, mechanism, sent.report().by(mechanism) as usize);
        }
        Poll::Ready(Ok(sent.bytes() as usize))
    }
}
