//! What an answer stands on, so that the same request can be given the same answer again.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use super::cache::entry::Entry;
use super::cache::revalidation::{Member, Round};
use super::site::Chosen;
use crate::body::{Basis, FileBody};

impl Basis {
    /// None for a file that has changed so lately that its tag will be another one soon.
    pub(super) fn of(entry: &Arc<Entry>, chosen: Chosen) -> Option<Self> {
        (entry.settled && chosen != Chosen::AmongSides).then(|| Self {
            entry: Arc::downgrade(entry) as Weak<dyn Any + Send + Sync>,
            without_sides: chosen == Chosen::WithoutSides,
        })
    }

    /// Whether the answer is still right, for a request that has come by now.
    pub fn check(&self) -> Check {
        let entry = self.entry.upgrade();
        let entry = entry.and_then(|entry| entry.downcast::<Entry>().ok());
        Check(entry.map(|entry| Checking {
            entry,
            without_sides: self.without_sides,
            member: Round::join(),
        }))
    }
}

/// The answer of [`Basis::check`]: the body once more, as [`FileBody::from_file`] makes it, if the answer is
/// still right. It comes at once, or after the tasks that are ready have had their turn.
///
/// # Cancellation
///
/// Dropping the future leaves nothing behind.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Check(Option<Checking>);

#[derive(Debug)]
struct Checking {
    entry: Arc<Entry>,
    without_sides: bool,
    member: Option<Member>,
}

impl Checking {
    fn holds(&self) -> bool {
        let is_current = match &self.member {
            Some(member) => member.round.is_current(&self.entry),
            None => self.entry.is_current(),
        };
        is_current && (!self.without_sides || self.entry.has_no_sides())
    }
}

impl Future for Check {
    type Output = Option<FileBody>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<FileBody>> {
        if let Some(Checking {
            member: Some(member),
            ..
        }) = &mut self.0
            && member.waits
        {
            member.waits = false;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let held = self.0.take().filter(Checking::holds);
        Poll::Ready(held.map(|checking| {
            let entry = &checking.entry;
            FileBody::from_file(Arc::clone(&entry.file), 0..entry.len())
        }))
    }
}
