//! Pages of the arena on their way: lent to the socket instead of copied.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use uncopied::arena::Pages;
use uncopied::policy::{Driver, Mechanism};
use uncopied::{Channel, SendOptions, Sent, zero_copy_send_enabled};

use super::Stream;
use crate::options::Options;
use crate::totals::Totals;

/// From this many bytes on, a slice of pages is sent by itself, as the plan for it says. Shorter ones are
/// written together with what stands next to them.
///
/// The plan lends from 16 KiB on; but what stands before the slice then costs a call of its own, which
/// HTTP/2 would pay for each of its frames of 16 KiB, whether the plan comes to lend them or not.
const ALONE: usize = 32 << 10;

/// What this connection knows of its socket, and has lent to it.
#[derive(Debug)]
pub(super) struct Lender {
    channel: Channel,
    /// How many bytes the kernel copied after all, as far as the totals have been told.
    kernel_copied: u64,
    totals: Arc<Totals>,
}

impl Lender {
    fn new(socket: BorrowedFd<'_>, options: &Options) -> Self {
        let mut send = SendOptions::default();
        if let Some(plan) = &options.for_pages {
            send = send.force_mechanisms(plan.mechanisms());
        }
        Self {
            channel: Channel::new(socket, Driver::Tokio, send),
            kernel_copied: 0,
            totals: Arc::clone(&options.totals),
        }
    }

    /// Makes one try. A socket that takes nothing is an error of the kind that clears its readiness.
    fn try_send(&mut self, pages: &Pages, socket: BorrowedFd<'_>) -> io::Result<Sent> {
        let sent = self.channel.try_send(pages, socket)?;
        match sent.bytes() {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(sent),
        }
    }

    fn tell_totals(&mut self) {
        let known = self.channel.report().kernel_copied();
        self.totals
            .add_kernel_copied(known.saturating_sub(self.kernel_copied));
        self.kernel_copied = known;
    }
}

impl Drop for Lender {
    fn drop(&mut self) {
        self.tell_totals();
    }
}

impl Stream {
    /// Whether this slice of pages is sent by itself.
    pub(super) fn sends_alone(&self, pages: &Pages) -> bool {
        let is_rest = || {
            let lender = self.lender.as_ref();
            lender.is_some_and(|lender| lender.channel.goes_on_with(pages))
        };
        let is_forced_to_copy = || {
            let plan = self.options.for_pages.as_ref();
            plan.is_some_and(|plan| plan.mechanisms() == [Mechanism::Copy])
        };
        (pages.len() >= ALONE || is_rest()) && zero_copy_send_enabled() && !is_forced_to_copy()
    }

    /// Makes the socket take some of the pages. What it holds by reference, the channel keeps, whatever
    /// becomes of the slices, the body, and this stream.
    pub(super) fn poll_send_pages(
        &mut self,
        cx: &mut Context<'_>,
        pages: &Pages,
    ) -> Poll<io::Result<usize>> {
        let mut lender = match self.lender.take() {
            Some(lender) => lender,
            None => Box::new(Lender::new(self.as_fd(), &self.options)),
        };
        let socket = self.as_fd();
        let sent = self.poll_when_writable(cx, || lender.try_send(pages, socket));
        lender.tell_totals();
        self.lender = Some(lender);
        let sent = ready!(sent)?;
        for mechanism in Mechanism::MEMORY_TO_SOCKET {
            self.count(cx, mechanism, sent.report().by(mechanism) as usize);
        }
        Poll::Ready(Ok(sent.bytes() as usize))
    }
}
