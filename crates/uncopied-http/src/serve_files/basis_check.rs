//! Checks whether a response that was sent before is still valid.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use super::cache::entry::Entry;
use super::cache::revalidation::{GroupMember, RevalidationGroup};
use super::site::Negotiation;
use crate::body::{Basis, FileBody};

impl Basis {
    /// Returns `None` for a file that has changed so recently that its tag will change soon.
    pub(super) fn of(entry: &Arc<Entry>, negotiation: Negotiation) -> Option<Self> {
        let has_basis = entry.is_stable && negotiation != Negotiation::AmongPrecompressed;
        has_basis.then(|| Self {
            entry: Arc::downgrade(entry) as Weak<dyn Any + Send + Sync>,
            without_precompressed: negotiation == Negotiation::NoPrecompressed,
        })
    }

    /// Checks whether the response is still valid for a request that has already arrived.
    pub fn check(&self) -> Check {
        let entry = self.entry.upgrade();
        let entry = entry.and_then(|entry| entry.downcast::<Entry>().ok());
        Check(entry.map(|entry| PendingCheck {
            entry,
            without_precompressed: self.without_precompressed,
            member: RevalidationGroup::join(),
        }))
    }
}

/// The result of [`Basis::check`]: the body again, as [`FileBody::from_file`] makes it, if the
/// response is still valid. It is ready at once, or after the tasks that are ready have run.
///
/// # Cancellation
///
/// Dropping the future has no effect.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Check(Option<PendingCheck>);

#[derive(Debug)]
struct PendingCheck {
    entry: Arc<Entry>,
    without_precompressed: bool,
    member: Option<GroupMember>,
}

impl PendingCheck {
    fn is_valid(&self) -> bool {
        let is_current = match &self.member {
            Some(member) => member.group.is_current(&self.entry),
            None => self.entry.is_current(),
        };
        is_current && (!self.without_precompressed || self.entry.has_no_precompressed())
    }
}

impl Future for Check {
    type Output = Option<FileBody>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<FileBody>> {
        if let Some(PendingCheck {
            member: Some(member),
            ..
        }) = &mut self.0
            && member.must_yield
        {
            member.must_yield = false;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let valid = self.0.take().filter(PendingCheck::is_valid);
        Poll::Ready(valid.map(|check| {
            let entry = &check.entry;
            FileBody::from_file(Arc::clone(&entry.file), 0..entry.len())
        }))
    }
}
