//! The sends of a ring that are under way, and what the kernel's completions say of them.
//!
//! Each send has up to two completions: the answer, and, where the answer has F_MORE, a notice once
//! nothing refers to the pages any more. Nothing in here makes a call: a test can play the kernel.

use rustix::io::{Errno, Result};

use crate::completion::{Part, Rule};
use crate::lease::Lease;

/// `IORING_CQE_F_MORE`: a notice follows.
pub(super) const MORE: u32 = 1 << 1;
/// `IORING_CQE_F_NOTIF`: this is the notice.
pub(super) const NOTICE: u32 = 1 << 3;
/// `IORING_NOTIF_USAGE_ZC_COPIED`, in the result of a notice: the kernel copied.
pub(super) const COPIED: u32 = 1 << 31;

/// The memory of one send: one lease at least, and most often no more.
#[derive(Debug)]
pub(crate) struct Leases {
    first: Lease,
    rest: Vec<Lease>,
}

impl Leases {
    /// These leases, in this order; `None` if there is none.
    pub(crate) fn of(leases: impl IntoIterator<Item = Lease>) -> Option<Self> {
        let mut leases = leases.into_iter();
        let first = leases.next()?;
        let rest = leases.collect();
        Some(Self { first, rest })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Lease> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    pub(super) fn first(&self) -> &Lease {
        &self.first
    }

    pub(super) fn is_one(&self) -> bool {
        self.rest.is_empty()
    }

    /// Gives back what lies behind the first `len` bytes of all of them together.
    fn shorten(&mut self, len: usize) {
        let mut left = len;
        for lease in std::iter::once(&mut self.first).chain(&mut self.rest) {
            let taken = left.min(lease.memory().len());
            lease.shorten(taken);
            left -= taken;
        }
        self.rest.retain(|lease| lease.memory().len() > 0);
    }
}

impl From<Lease> for Leases {
    fn from(first: Lease) -> Self {
        let rest = Vec::new();
        Self { first, rest }
    }
}

/// Names a send to the kernel, and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token(pub(super) u64);

impl Token {
    fn new(index: usize, round: u32) -> Self {
        Self(index as u64 | u64::from(round) << 32)
    }

    fn index(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }

    fn round(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// What is to be done about a send. It may run code of anybody's (wakers), so it is taken out of the
/// ring's lock first.
#[must_use = "whoever waits for it is told by settle"]
pub(super) struct Done {
    /// Memory that the kernel is done with.
    leases: Option<Leases>,
    part: Option<Part>,
    /// The bytes that went, and how many of them were copied; `None` if the send failed.
    sent: Option<(u64, u64)>,
}

impl Done {
    /// Gives the memory back, and tells whoever waits for it.
    pub(super) fn settle(self) {
        drop(self.leases);
        if let (Some(part), Some((bytes, copied))) = (self.part, self.sent) {
            part.settle(bytes, copied, Rule::Notice);
        }
    }
}

struct Flight {
    leases: Leases,
    /// `None` once the send has failed: it does not count.
    part: Option<Part>,
    /// How many bytes the socket took, once the answer is there.
    answered: Option<u64>,
    /// Whether the kernel copied, if the notice came before the answer.
    noticed: Option<bool>,
}

#[derive(Default)]
struct Slot {
    /// How many sends have had this slot: a completion of an earlier one is not taken for one of
    /// this.
    round: u32,
    flight: Option<Flight>,
}

/// The sends that are under way.
#[derive(Default)]
pub(super) struct Flights {
    slots: Vec<Slot>,
    free: Vec<usize>,
    done: Vec<Done>,
}

impl Flights {
    /// A send that is about to be submitted.
    pub(super) fn begin(&mut self, leases: Leases, part: Part) -> Token {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        slot.flight = Some(Flight {
            leases,
            part: Some(part),
            answered: None,
            noticed: None,
        });
        Token::new(index, slot.round)
    }

    /// Takes back a send that the kernel has not been given.
    pub(super) fn withdraw(&mut self, token: Token) {
        if let Some(flight) = self.end(token) {
            self.done.push(Done {
                leases: Some(flight.leases),
                part: flight.part,
                sent: None,
            });
        }
    }

    /// Takes in one completion. If it is the answer to a send, what that is.
    pub(super) fn take_in(
        &mut self,
        token: Token,
        result: i32,
        flags: u32,
    ) -> Option<Result<usize>> {
        let slot = self.slots.get_mut(token.index())?;
        if slot.round != token.round() {
            return None;
        }
        let flight = slot.flight.as_mut()?;
        if flags & NOTICE != 0 {
            flight.noticed = Some(result.cast_unsigned() & COPIED != 0);
            if flight.answered.is_some() {
                self.finish(token);
            }
            return None;
        }
        let answer = match usize::try_from(result) {
            Ok(bytes) => {
                flight.leases.shorten(bytes);
                Ok(bytes)
            }
            Err(_) => {
                // It does not count; its memory may still have to be kept for a notice.
                self.done.push(Done {
                    leases: None,
                    part: flight.part.take(),
                    sent: None,
                });
                Err(Errno::from_raw_os_error(result.saturating_neg()))
            }
        };
        flight.answered = Some(answer.unwrap_or(0) as u64);
        if flight.noticed.is_some() || flags & MORE == 0 {
            self.finish(token);
        }
        Some(answer)
    }

    fn finish(&mut self, token: Token) {
        if let Some(flight) = self.end(token) {
            let bytes = flight.answered.unwrap_or(0);
            // Without a notice, nothing was lent.
            let is_copied = flight.noticed.unwrap_or(true);
            self.done.push(Done {
                leases: Some(flight.leases),
                part: flight.part,
                sent: Some((bytes, if is_copied { bytes } else { 0 })),
            });
        }
    }

    fn end(&mut self, token: Token) -> Option<Flight> {
        let slot = self.slots.get_mut(token.index())?;
        let flight = slot.flight.take()?;
        slot.round = slot.round.wrapping_add(1);
        self.free.push(token.index());
        Some(flight)
    }

    /// The sends that ended since this was last asked.
    pub(super) fn take_done(&mut self) -> Vec<Done> {
        std::mem::take(&mut self.done)
    }

    /// How many sends are under way.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::arena::PageBuffer;
    use crate::completion::{Account, Completion, Sending};
    use crate::lease::{Memory, Quota};

    struct Bench {
        flights: Flights,
        quota: Arc<Quota>,
        account: Arc<Account>,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                flights: Flights::default(),
                quota: Quota::new(u64::MAX),
                account: Arc::default(),
            }
        }

        /// A send of buffers of so many pages each.
        fn begin(&mut self, pages: &[usize]) -> (Token, Completion) {
            let leases = pages.iter().map(|pages| {
                let buffer = PageBuffer::zeroed(pages * 4096).expect("taken");
                Lease::take(Memory::Pages(buffer.freeze()), &self.quota).expect("granted")
            });
            let leases = Leases::of(leases).expect("some");
            let sending = Sending::new();
            let part = sending.part(&self.account, None);
            (self.flights.begin(leases, part), sending.completion())
        }

        fn take_in(&mut self, token: Token, result: i32, flags: u32) -> Option<Result<usize>> {
            let answer = self.flights.take_in(token, result, flags);
            self.flights.take_done().into_iter().for_each(Done::settle);
            answer
        }

        fn leased_pages(&self) -> u64 {
            self.quota.leased() / 4096
        }
    }

    /// Bytes and bytes copied, if it is settled.
    fn settled(completion: &Completion) -> Option<(u64, u64)> {
        completion.settled().map(|it| (it.bytes, it.copied))
    }

    const WAS_COPIED: i32 = COPIED.cast_signed();

    #[test]
    fn the_lease_is_shortened_by_the_answer_and_ends_with_the_notice() {
        let mut bench = Bench::new();
        let (token, completion) = bench.begin(&[4]);
        assert_eq!(bench.take_in(token, 4097, MORE), Some(Ok(4097)));
        assert_eq!((bench.leased_pages(), settled(&completion)), (2, None));
        assert_eq!(bench.take_in(token, 0, NOTICE), None);
        assert_eq!(bench.leased_pages(), 0);
        assert_eq!(settled(&completion), Some((4097, 0)));
        assert_eq!(bench.flights.len(), 0);
    }

    #[test]
    fn what_the_kernel_copied_is_counted() {
        let mut bench = Bench::new();
        let (token, completion) = bench.begin(&[1]);
        bench.take_in(token, 4096, MORE);
        bench.take_in(token, WAS_COPIED, NOTICE);
        assert_eq!(settled(&completion), Some((4096, 4096)));
        assert_eq!(bench.account.copied_in_a_row(), 1);
    }

    #[test]
    fn several_leases_are_shortened_together() {
        let mut bench = Bench::new();
        let (token, completion) = bench.begin(&[1, 2, 3]);
        bench.take_in(token, 4096 + 4096, MORE);
        assert_eq!(bench.leased_pages(), 2);
        bench.take_in(token, 0, NOTICE);
        assert_eq!(settled(&completion), Some((8192, 0)));
        assert_eq!(bench.leased_pages(), 0);
    }

    #[test]
    fn an_error_with_a_notice_to_come_keeps_the_lease_and_does_not_count() {
        let mut bench = Bench::new();
        let (token, completion) = bench.begin(&[4]);
        let again = -Errno::AGAIN.raw_os_error();
        assert_eq!(bench.take_in(token, again, MORE), Some(Err(Errno::AGAIN)));
        assert_eq!(settled(&completion), Some((0, 0)), "it never was");
        assert_eq!(bench.leased_pages(), 4);
        bench.take_in(token, WAS_COPIED, NOTICE);
        assert_eq!(bench.leased_pages(), 0);
        assert_eq!(
            (bench.account.copied(), bench.account.copied_in_a_row()),
            (0, 0)
        );
    }

    #[test]
    fn an_error_without_a_notice_ends_the_send() {
        let mut bench = Bench::new();
        let (token, _completion) = bench.begin(&[4]);
        bench.take_in(token, -Errno::PIPE.raw_os_error(), 0);
        assert_eq!((bench.leased_pages(), bench.flights.len()), (0, 0));
    }

    #[test]
    fn a_notice_before_the_answer_ends_nothing_until_that() {
        let mut bench = Bench::new();
        let (token, completion) = bench.begin(&[2]);
        assert_eq!(bench.take_in(token, WAS_COPIED, NOTICE), None);
        assert_eq!((bench.leased_pages(), settled(&completion)), (2, None));
        assert_eq!(bench.take_in(token, 5000, MORE), Some(Ok(5000)));
        assert_eq!(bench.leased_pages(), 0);
        assert_eq!(settled(&completion), Some((5000, 5000)));
    }

    #[test]
    fn without_a_notice_nothing_was_lent() {
        let mut bench = Bench::new();
        let (token, completion) = bench.begin(&[1]);
        bench.take_in(token, 100, 0);
        assert_eq!(settled(&completion), Some((100, 100)));
    }

    #[test]
    fn completions_of_nobody_change_nothing() {
        let mut bench = Bench::new();
        let (first, _completion) = bench.begin(&[1]);
        bench.take_in(first, 4096, MORE);
        bench.take_in(first, 0, NOTICE);
        let (second, completion) = bench.begin(&[2]);
        assert_eq!(second.index(), first.index());
        assert_eq!(bench.take_in(first, 0, NOTICE), None);
        assert_eq!(bench.take_in(first, 10, MORE), None);
        assert_eq!(bench.take_in(Token(7), 10, 0), None);
        assert_eq!(bench.take_in(Token(u64::MAX), 0, NOTICE), None);
        assert_eq!((bench.leased_pages(), settled(&completion)), (2, None));
        bench.take_in(second, 8192, MORE);
        bench.take_in(second, 0, NOTICE);
        assert_eq!(settled(&completion), Some((8192, 0)));
    }

    #[test]
    fn a_withdrawn_send_leaves_nothing() {
        let mut bench = Bench::new();
        let (token, completion) = bench.begin(&[3]);
        bench.flights.withdraw(token);
        bench.flights.take_done().into_iter().for_each(Done::settle);
        assert_eq!((bench.leased_pages(), bench.flights.len()), (0, 0));
        assert_eq!(settled(&completion), Some((0, 0)));
        assert_eq!(bench.take_in(token, 4096, MORE), None);
    }
}
