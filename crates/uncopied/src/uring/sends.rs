//! The sends of a ring that are in flight, and what the kernel's completions say about them.
//!
//! Each send has up to two completions: its result, and, if the result carries F_MORE, a
//! notification once nothing refers to the pages any more. Nothing in here makes a system call, so
//! that a test can play the kernel.

use std::os::fd::BorrowedFd;

use rustix::io::{Errno, Result};

use crate::in_flight::{FreeReason, Leases, SendPart};
use crate::sys::uring::{Completion, FLAG_MORE, FLAG_NOTIFICATION, RESULT_COPIED, SendRequest};

/// Names a send in its completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token(u64);

impl Token {
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

/// A send, or a part of one, that has ended. Completing it may run foreign code (wakers), so it is
/// first taken out of the ring's lock.
#[must_use = "its completion waits for `complete`"]
pub(super) struct EndedSend {
    /// Memory that the kernel is done with.
    leases: Option<Leases>,
    part: Option<SendPart>,
    /// How many bytes were sent, and how many of them were copied; `None` if the send failed.
    sent: Option<(u64, u64)>,
}

impl EndedSend {
    /// Frees the memory, and then tells the completion.
    pub(super) fn complete(self) {
        drop(self.leases);
        if let (Some(part), Some((bytes, copied))) = (self.part, self.sent) {
            part.complete(bytes, copied, FreeReason::Notification);
        }
    }
}

struct RingSend {
    leases: Leases,
    /// `None` once the send has failed: it does not count.
    part: Option<SendPart>,
    /// How many bytes the socket accepted, once the result is there.
    accepted: Option<u64>,
    /// Whether the kernel copied, if the notification came before the result.
    notified: Option<bool>,
}

#[derive(Default)]
struct Slot {
    /// How many sends have used this slot, so that a late completion of one of them is not taken
    /// for one of the current send.
    generation: u32,
    send: Option<RingSend>,
}

/// The sends that are in flight.
#[derive(Default)]
pub(super) struct Sends {
    slots: Vec<Slot>,
    free: Vec<usize>,
    ended: Vec<EndedSend>,
}

impl Sends {
    /// Adds a send that is about to be submitted.
    pub(super) fn begin(&mut self, leases: Leases, part: SendPart) -> Token {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        slot.send = Some(RingSend {
            leases,
            part: Some(part),
            accepted: None,
            notified: None,
        });
        Token::new(index, slot.generation)
    }

    /// What asks the kernel for this send.
    pub(super) fn request<'a>(
        &'a self,
        token: Token,
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

    /// Removes a send that the kernel never received.
    pub(super) fn withdraw(&mut self, token: Token) {
        if let Some(send) = self.end(token) {
            self.ended.push(EndedSend {
                leases: Some(send.leases),
                part: send.part,
                sent: None,
            });
        }
    }

    /// Processes one completion. If it is the result of a send, returns which and what.
    pub(super) fn process(&mut self, completion: Completion) -> Option<(Token, Result<usize>)> {
        let Completion { result, flags, .. } = completion;
        let token = Token(completion.token);
        let slot = self.slots.get_mut(token.index())?;
        if slot.generation != token.generation() {
            return None;
        }
        let send = slot.send.as_mut()?;
        if flags & FLAG_NOTIFICATION != 0 {
            send.notified = Some(result.cast_unsigned() & RESULT_COPIED != 0);
            if send.accepted.is_some() {
                self.finish(token);
            }
            return None;
        }
        let result = match usize::try_from(result) {
            Ok(bytes) => {
                send.leases.shorten(bytes);
                Ok(bytes)
            }
            Err(_) => {
                // The send does not count, but a notification may still follow: its memory is kept.
                self.ended.push(EndedSend {
                    leases: None,
                    part: send.part.take(),
                    sent: None,
                });
                Err(Errno::from_raw_os_error(result.saturating_neg()))
            }
        };
        send.accepted = Some(result.unwrap_or(0) as u64);
        if send.notified.is_some() || flags & FLAG_MORE == 0 {
            self.finish(token);
        }
        Some((token, result))
    }

    fn finish(&mut self, token: Token) {
        if let Some(send) = self.end(token) {
            let bytes = send.accepted.unwrap_or(0);
            // Without a notification, the kernel copied.
            let is_copied = send.notified.unwrap_or(true);
            self.ended.push(EndedSend {
                leases: Some(send.leases),
                part: send.part,
                sent: Some((bytes, if is_copied { bytes } else { 0 })),
            });
        }
    }

    fn end(&mut self, token: Token) -> Option<RingSend> {
        let slot = self.slots.get_mut(token.index())?;
        let send = slot.send.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(token.index());
        Some(send)
    }

    /// The sends that have ended since the last call.
    #[must_use = "their completions wait for `complete`"]
    pub(super) fn take_ended(&mut self) -> Vec<EndedSend> {
        std::mem::take(&mut self.ended)
    }

    /// How many sends are in flight.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::arena::Memory;
    use crate::arena::PageBuffer;
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

        /// A send of buffers of so many pages each.
        fn begin(&mut self, pages: &[usize]) -> (Token, in_flight::Completion) {
            let leases = pages.iter().map(|pages| {
                let buffer = PageBuffer::zeroed(pages * 4096).expect("taken");
                Lease::take(Memory::Pages(buffer.freeze()), &self.quota).expect("granted")
            });
            let leases = Leases::of(leases).expect("some");
            let tracker = SendTracker::new();
            let part = tracker.part(&self.stats, None);
            (self.sends.begin(leases, part), tracker.completion())
        }

        fn process(&mut self, token: Token, result: i32, flags: u32) -> Option<Result<usize>> {
            let completion = Completion {
                token: token.0,
                result,
                flags,
            };
            let result = self.sends.process(completion);
            self.sends
                .take_ended()
                .into_iter()
                .for_each(EndedSend::complete);
            result.map(|(_, result)| result)
        }

        fn leased_pages(&self) -> u64 {
            self.quota.in_flight_bytes() / 4096
        }
    }

    /// Bytes and bytes copied, if it is settled.
    fn outcome(completion: &in_flight::Completion) -> Option<(u64, u64)> {
        completion.outcome().map(|it| (it.bytes, it.copied))
    }

    const WAS_COPIED: i32 = RESULT_COPIED.cast_signed();

    #[test]
    fn the_lease_is_shortened_by_the_answer_and_ends_with_the_notice() {
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
    fn what_the_kernel_copied_is_counted() {
        let mut harness = Harness::new();
        let (token, completion) = harness.begin(&[1]);
        harness.process(token, 4096, FLAG_MORE);
        harness.process(token, WAS_COPIED, FLAG_NOTIFICATION);
        assert_eq!(outcome(&completion), Some((4096, 4096)));
        assert_eq!(harness.stats.copied_in_a_row(), 1);
    }

    #[test]
    fn several_leases_are_shortened_together() {
        let mut harness = Harness::new();
        let (token, completion) = harness.begin(&[1, 2, 3]);
        harness.process(token, 4096 + 4096, FLAG_MORE);
        assert_eq!(harness.leased_pages(), 2);
        harness.process(token, 0, FLAG_NOTIFICATION);
        assert_eq!(outcome(&completion), Some((8192, 0)));
        assert_eq!(harness.leased_pages(), 0);
    }

    #[test]
    fn an_error_with_a_notice_to_come_keeps_the_lease_and_does_not_count() {
        let mut harness = Harness::new();
        let (token, completion) = harness.begin(&[4]);
        let again = -Errno::AGAIN.raw_os_error();
        assert_eq!(
            harness.process(token, again, FLAG_MORE),
            Some(Err(Errno::AGAIN))
        );
        assert_eq!(outcome(&completion), Some((0, 0)), "it never was");
        assert_eq!(harness.leased_pages(), 4);
        harness.process(token, WAS_COPIED, FLAG_NOTIFICATION);
        assert_eq!(harness.leased_pages(), 0);
        assert_eq!(
            (harness.stats.copied(), harness.stats.copied_in_a_row()),
            (0, 0)
        );
    }

    #[test]
    fn an_error_without_a_notice_ends_the_send() {
        let mut harness = Harness::new();
        let (token, _completion) = harness.begin(&[4]);
        harness.process(token, -Errno::PIPE.raw_os_error(), 0);
        assert_eq!((harness.leased_pages(), harness.sends.len()), (0, 0));
    }

    #[test]
    fn a_notice_before_the_answer_ends_nothing_until_that() {
        let mut harness = Harness::new();
        let (token, completion) = harness.begin(&[2]);
        assert_eq!(harness.process(token, WAS_COPIED, FLAG_NOTIFICATION), None);
        assert_eq!((harness.leased_pages(), outcome(&completion)), (2, None));
        assert_eq!(harness.process(token, 5000, FLAG_MORE), Some(Ok(5000)));
        assert_eq!(harness.leased_pages(), 0);
        assert_eq!(outcome(&completion), Some((5000, 5000)));
    }

    #[test]
    fn without_a_notice_nothing_was_lent() {
        let mut harness = Harness::new();
        let (token, completion) = harness.begin(&[1]);
        harness.process(token, 100, 0);
        assert_eq!(outcome(&completion), Some((100, 100)));
    }

    #[test]
    fn completions_of_nobody_change_nothing() {
        let mut harness = Harness::new();
        let (first, _completion) = harness.begin(&[1]);
        harness.process(first, 4096, FLAG_MORE);
        harness.process(first, 0, FLAG_NOTIFICATION);
        let (second, completion) = harness.begin(&[2]);
        assert_eq!(second.index(), first.index());
        assert_eq!(harness.process(first, 0, FLAG_NOTIFICATION), None);
        assert_eq!(harness.process(first, 10, FLAG_MORE), None);
        assert_eq!(harness.process(Token(7), 10, 0), None);
        assert_eq!(harness.process(Token(u64::MAX), 0, FLAG_NOTIFICATION), None);
        assert_eq!((harness.leased_pages(), outcome(&completion)), (2, None));
        harness.process(second, 8192, FLAG_MORE);
        harness.process(second, 0, FLAG_NOTIFICATION);
        assert_eq!(outcome(&completion), Some((8192, 0)));
    }

    #[test]
    fn a_withdrawn_send_leaves_nothing() {
        let mut harness = Harness::new();
        let (token, completion) = harness.begin(&[3]);
        harness.sends.withdraw(token);
        harness
            .sends
            .take_ended()
            .into_iter()
            .for_each(EndedSend::complete);
        assert_eq!((harness.leased_pages(), harness.sends.len()), (0, 0));
        assert_eq!(outcome(&completion), Some((0, 0)));
        assert_eq!(harness.process(token, 4096, FLAG_MORE), None);
    }
}
