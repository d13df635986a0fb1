//! Checks whether a response that was sent earlier is still valid.

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
    /// Returns the basis of a response whose body is the whole file of `entry`. Returns `None` if
    /// the file changed so recently that its `ETag` is still weak, or if the file was chosen
    /// [among precompressed files](Negotiation::AmongPrecompressed).
    pub(super) fn of(entry: &Arc<Entry>, negotiation: Negotiation) -> Option<Self> {
        let has_basis = entry.is_stable && negotiation != Negotiation::AmongPrecompressed;
        has_basis.then(|| Self {
            entry: Arc::downgrade(entry) as Weak<dyn Any + Send + Sync>,
            without_precompressed: negotiation == Negotiation::NoPrecompressed,
        })
    }

    /// Checks whether the response is still valid, and may therefore be sent again in response to a
    /// later request. Call this after that request has arrived, because the check only covers
    /// changes made before the call.
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

/// The future returned by [`Basis::check`]. If the response is still valid, the future resolves to
/// a new body for the whole file, made with [`FileBody::from_file`]. Otherwise, it resolves to
/// `None`. The future returns [`Poll::Pending`] at most once, to let other ready tasks run.
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
