//! Tracks the sends of a ring that are in flight, and processes the kernel's completions for them.
//!
//! Each send has one or two completions: its result and, if the result has the flag
//! `IORING_CQE_F_MORE`, a notification once nothing in the kernel refers to the pages any longer.
//! This module makes no system calls, so tests can pass in any sequence of completions.

use std::os::fd::BorrowedFd;

use rustix::io::{Errno, Result};

use crate::in_flight::{EndedSend, FreeReason, Leases, SendPart};
use crate::sys::uring::{Completion, FLAG_MORE, FLAG_NOTIFICATION, RESULT_COPIED, SendRequest};

/// Identifies a send in its completions. The token consists of the index of the send's slot, and
/// the generation of the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SendToken(u64);

impl SendToken {
    fn new(index: usize, generation: u32) -> Self {
        Self(index as u64 | u64::from(generation) << 32)
    }

    fn index(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

struct RingSend {
    leases: Leases,
    /// `None` once the send has failed: the part is then dropped, so that the failed send does not
    /// count in the outcome.
    part: Option<SendPart>,
    /// The number of bytes that the socket accepted; `None` until the result has arrived.
    accepted: Option<u64>,
    /// Whether the kernel copied the bytes; `None` until the notification has arrived.
    is_copied: Option<bool>,
}

#[derive(Default)]
struct SendSlot {
    /// The number of earlier sends that have used this slot. Distinguishes a late completion of an
    /// earlier send from a completion of the current one.
    generation: u32,
    send: Option<RingSend>,
}

/// The sends that are in flight.
#[derive(Default)]
pub(super) struct Sends {
    slots: Vec<SendSlot>,
    /// The indices of the slots without a send.
    free: Vec<usize>,
    /// The sends that have ended, and the resources that sends in flight have released early, since
    /// the last call to [`take_ended`](Self::take_ended).
    ended: Vec<EndedSend>,
}

impl Sends {
    /// Adds a send that is about to be submitted.
    pub(super) fn begin(&mut self, leases: Leases, part: SendPart) -> SendToken {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(SendSlot::default());
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        slot.send = Some(RingSend {
            leases,
            part: Some(part),
            accepted: None,
            is_copied: None,
        });
        SendToken::new(index, slot.generation)
    }

    /// Builds the request that submits this send to the kernel. Returns `None` if there is no such
    /// send.
    pub(super) fn request<'a>(
        &'a self,
        token: SendToken,
        sink: BorrowedFd<'a>,
    ) -> Option<SendRequest<'a>> {
        let send = self.slots.get(token.index())?.send.as_ref()?;
        let mut buffers = send.leases.iter().map(|lease| lease.memory().mapped());
        Some(SendRequest {
            sink,
            first: buffers.next()?,
            rest: buffers.collect(),
            token: token.0,
        })
    }

    /// Removes a send that the kernel did not accept.
    pub(super) fn withdraw(&mut self, token: SendToken) {
        if let Some(send) = self.end(token) {
            let ended = EndedSend::unsent(Some(send.leases), send.part);
            self.ended.push(ended);
        }
    }

    /// Processes one completion. If it is the result of a send, returns the token of this send and
    /// the result; if it is a notification, returns `None`. A completion of an unknown send is
    /// ignored.
    pub(super) fn process(&mut self, completion: Completion) -> Option<(SendToken, Result<usize>)> {
        let Completion { result, flags, .. } = completion;
        let token = SendToken(completion.token);
        let slot = self.slots.get_mut(token.index())?;
        if slot.generation != token.generation() {
            return None;
        }
        let send = slot.send.as_mut()?;
        if flags & FLAG_NOTIFICATION != 0 {
            send.is_copied = Some(result.cast_unsigned() & RESULT_COPIED != 0);
            if send.accepted.is_some() {
                self.finish(token);
            }
            return None;
        }
        let result = match usize::try_from(result) {
            Ok(bytes) => {
                if let Some(unused) = send.leases.shorten(bytes) {
                    self.ended.push(EndedSend::unsent(Some(unused), None));
                }
                Ok(bytes)
            }
            Err(_) => {
                // A failed send does not count, so its part is released now. But a notification may
                // still follow, so the memory is kept until then.
                self.ended.push(EndedSend::unsent(None, send.part.take()));
                Err(Errno::from_raw_os_error(result.saturating_neg()))
            }
        };
        send.accepted = Some(result.unwrap_or(0) as u64);
        if send.is_copied.is_some() || flags & FLAG_MORE == 0 {
            self.finish(token);
        }
        Some((token, result))
    }

    /// Ends a send whose completions have all arrived.
    fn finish(&mut self, token: SendToken) {
        if let Some(send) = self.end(token) {
            let bytes = send.accepted.unwrap_or(0);
            // If there was no notification, the kernel kept no reference to the pages, so it must
            // have copied the bytes.
            let is_copied = send.is_copied.unwrap_or(true);
            self.ended.push(EndedSend::sent(
                send.leases,
                send.part,
                bytes,
                if is_copied { bytes } else { 0 },
                FreeReason::Notification,
            ));
        }
    }

    /// Removes a send from its slot, so that another send can use the slot.
    fn end(&mut self, token: SendToken) -> Option<RingSend> {
        let slot = self.slots.get_mut(token.index())?;
        let send = slot.send.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(token.index());
        Some(send)
    }

    /// Returns the sends that have ended since the last call, and the resources that sends in
    /// flight have released early since then. Pass them to
    /// [`complete_all`](crate::in_flight::complete_all) after the ring's lock has been released.
    pub(super) fn take_ended(&mut self) -> Vec<EndedSend> {
        std::mem::take(&mut self.ended)
    }

    /// Returns the number of sends in flight.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::arena::{Memory, PageBuffer};
    use crate::in_flight::{self, Lease, NotificationStats, Quota, SendTracker};

    struct Harness {
        sends: Sends,
        quota: Arc<Quota>,
        stats: Arc<NotificationStats>,
    }

    impl Harness {
        fn new() -> Self {
            Self {
                sends: Sends::default(),
                quota: Quota::new(u64::MAX),
                stats: Arc::default(),
            }
        }

        /// Begins a send of several buffers. `pages` has the length of each buffer in pages.
        fn begin(&mut self, pages: &[usize]) -> (SendToken, in_flight::Completion) {
            let leases = pages.iter().map(|pages| {
                let buffer = PageBuffer::zeroed(pages * 4096).expect("allocated");
                Lease::take(Memory::Pages(buffer.freeze()), &self.quota).expect("within the limit")
            });
            let leases = Leases::of(leases).expect("at least one");
            let tracker = SendTracker::new();
            let part = tracker.part(&self.stats, None);
            (self.sends.begin(leases, part), tracker.completion())
        }

        fn process(&mut self, token: SendToken, result: i32, flags: u32) -> Option<Result<usize>> {
            let completion = Completion {
                token: token.0,
                result,
                flags,
            };
            let result = self.sends.process(completion);
            self.complete_ended();
            result.map(|(_, result)| result)
        }

        fn complete_ended(&mut self) {
            in_flight::complete_all(self.sends.take_ended());
        }

        fn leased_pages(&self) -> u64 {
            self.quota.in_flight_bytes() / 4096
        }
    }

    /// Returns the number of bytes sent and the number of bytes copied; `None` while the send is
    /// not complete.
    fn outcome(completion: &in_flight::Completion) -> Option<(u64, u64)> {
        completion.outcome().map(|it| (it.bytes, it.copied))
    }

    /// The result field of a notification that reports that the kernel copied the bytes.
    const COPIED: i32 = RESULT_COPIED.cast_signed();

    #[test]
    fn a_result_shortens_the_lease_and_the_notification_ends_it() {
        let mut harness = Harness::new();
        let (token, completion) = harness.begin(&[4]);
        assert_eq!(harness.process(token, 4097, FLAG_MORE), Some(Ok(4097)));
        assert_eq!((harness.leased_pages(), outcome(&completion)), (2, None));
        assert_eq!(harness.process(token, 0, FLAG_NOTIFICATION), None);
        assert_eq!(harness.leased_pages(), 0);
        assert_eq!(outcome(&completion), Some((4097, 0)));
        assert_eq!(harness.sends.len(), 0);
    }

    #[test]
    fn bytes_that_the_kernel_copied_are_counted() {
        let mut harness = Harness::new();
        let (token, completion) = harness.begin(&[1]);
        harness.process(token, 4096, FLAG_MORE);
        harness.process(token, COPIED, FLAG_NOTIFICATION);
        assert_eq!(outcome(&completion), Some((4096, 4096)));
        assert_eq!(harness.stats.copied_notifications_in_a_row(), 1);
    }

    #[test]
    fn a_result_shortens_several_leases_together() {
        let mut harness = Harness::new();
        let (token, completion) = harness.begin(&[1, 2, 3]);
        harness.process(token, 4096 + 4096, FLAG_MORE);
        assert_eq!(harness.leased_pages(), 2);
        harness.process(token, 0, FLAG_NOTIFICATION);
        assert_eq!(outcome(&completion), Some((8192, 0)));
        assert_eq!(harness.leased_pages(), 0);
    }

    /// The ring holds its lock while it processes a result. So it must not drop the memory that the
    /// socket did not accept until it has released the lock, because dropping memory may run
    /// foreign code.
    #[test]
    fn memory_that_was_not_accepted_is_dropped_with_the_ended_sends() {
        let mut harness = Harness::new();
        let [first, second] = [(), ()].map(|()| PageBuffer::zeroed(4096).expect("allocated"));
        let (first, second) = (first.freeze(), second.freeze());
        let leases = [&first, &second].map(|pages| {
            Lease::take(Memory::Pages(pages.clone()), &harness.quota).expect("within the limit")
        });
        let part = SendTracker::new().part(&harness.stats, None);
        let leases = Leases::of(leases).expect("at least one");
        let token = harness.sends.begin(leases, part);
        harness.sends.process(Completion {
            token: token.0,
            result: 4096,
            flags: FLAG_MORE,
        });
        let second = second.try_into_buffer().expect_err("not dropped yet");
        harness.complete_ended();
        second.try_into_buffer().expect("no longer leased");
        first.try_into_buffer().expect_err("in flight");
        harness.process(token, 0, FLAG_NOTIFICATION);
    }

    #[test]
    fn a_failed_send_does_not_count_but_is_leased_until_its_notification() {
        let mut harness = Harness::new();
        let (token, completion) = harness.begin(&[4]);
        let again = -Errno::AGAIN.raw_os_error();
        assert_eq!(
            harness.process(token, again, FLAG_MORE),
            Some(Err(Errno::AGAIN))
        );
        assert_eq!(outcome(&completion), Some((0, 0)), "the send failed");
        assert_eq!(harness.leased_pages(), 4);
        harness.process(token, COPIED, FLAG_NOTIFICATION);
        assert_eq!(harness.leased_pages(), 0);
        assert_eq!(
            (
                harness.stats.copied_bytes(),
                harness.stats.copied_notifications_in_a_row()
            ),
            (0, 0)
        );
    }

    #[test]
    fn a_failed_send_without_a_notification_ends_at_once() {
        let mut harness = Harness::new();
        let (token, _completion) = harness.begin(&[4]);
        harness.process(token, -Errno::PIPE.raw_os_error(), 0);
        assert_eq!((harness.leased_pages(), harness.sends.len()), (0, 0));
    }

    #[test]
    fn a_notification_before_the_result_takes_effect_with_the_result() {
        let mut harness = Harness::new();
        let (token, completion) = harness.begin(&[2]);
        assert_eq!(harness.process(token, COPIED, FLAG_NOTIFICATION), None);
        assert_eq!((harness.leased_pages(), outcome(&completion)), (2, None));
        assert_eq!(harness.process(token, 5000, FLAG_MORE), Some(Ok(5000)));
        assert_eq!(harness.leased_pages(), 0);
        assert_eq!(outcome(&completion), Some((5000, 5000)));
    }

    #[test]
    fn a_result_without_a_notification_means_that_the_kernel_copied() {
        let mut harness = Harness::new();
        let (token, completion) = harness.begin(&[1]);
        harness.process(token, 100, 0);
        assert_eq!(outcome(&completion), Some((100, 100)));
    }

    #[test]
    fn completions_of_unknown_sends_are_ignored() {
        let mut harness = Harness::new();
        let (first, _completion) = harness.begin(&[1]);
        harness.process(first, 4096, FLAG_MORE);
        harness.process(first, 0, FLAG_NOTIFICATION);
        let (second, completion) = harness.begin(&[2]);
        assert_eq!(second.index(), first.index());
        assert_eq!(harness.process(first, 0, FLAG_NOTIFICATION), None);
        assert_eq!(harness.process(first, 10, FLAG_MORE), None);
        assert_eq!(harness.process(SendToken(7), 10, 0), None);
        assert_eq!(
            harness.process(SendToken(u64::MAX), 0, FLAG_NOTIFICATION),
            None
        );
        assert_eq!((harness.leased_pages(), outcome(&completion)), (2, None));
        harness.process(second, 8192, FLAG_MORE);
        harness.process(second, 0, FLAG_NOTIFICATION);
        assert_eq!(outcome(&completion), Some((8192, 0)));
    }

    #[test]
    fn a_withdrawn_send_leaves_nothing_behind() {
        let mut harness = Harness::new();
        let (token, completion) = harness.begin(&[3]);
        harness.sends.withdraw(token);
        harness.complete_ended();
        assert_eq!((harness.leased_pages(), harness.sends.len()), (0, 0));
        assert_eq!(outcome(&completion), Some((0, 0)));
        assert_eq!(harness.process(token, 4096, FLAG_MORE), None);
    }
}
