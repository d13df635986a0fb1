//! What an answer stands on, so that the same request can be given the same answer again.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use super::Shared;
use super::cache::Entry;
use super::find::Chosen;
use super::rounds::{Member, Round};
use crate::body::FileBody;

/// On what an answer of [`ServeFiles`](crate::ServeFiles) stands: a whole file that its path leads to, and
/// nothing else but the request.
///
/// For as long as that [holds](Self::check), the same request, byte for byte, has the same answer, byte
/// for byte but for its `Date`. So a server that keeps the head of the answer can give it again without
/// making it again. It is never stale: the check asks the kernel, as a look-up in the cache of open files does.
///
/// Only a whole file has a basis, and not one that was chosen among side files, stands in for another that is not
/// there, or has changed a moment ago.
///
/// It keeps neither the file nor the service alive. Without them it holds no more.
#[derive(Clone, Debug)]
pub struct Basis {
    shared: Weak<Shared>,
    entry: Weak<Entry>,
    without_sides: bool,
}

impl Basis {
    /// None for a file that has changed so lately that its tag will be another one soon.
    pub(super) fn of(shared: &Arc<Shared>, entry: &Arc<Entry>, chosen: Chosen) -> Option<Self> {
        (entry.settled && chosen != Chosen::AmongSides).then(|| Self {
            shared: Arc::downgrade(shared),
            entry: Arc::downgrade(entry),
            without_sides: chosen == Chosen::WithoutSides,
        })
    }

    /// Whether the answer is still right, for a request that has come by now.
    pub fn check(&self) -> Check {
        let both = self.shared.upgrade().zip(self.entry.upgrade());
        Check(both.map(|(shared, entry)| Checking {
            shared,
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
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    without_sides: bool,
    member: Option<Member>,
}

impl Checking {
    fn holds(&self) -> bool {
        let root = &self.shared.root;
        let is_current = match &self.member {
            Some(member) => member.round.is_current(&self.entry, root),
            None => self.entry.is_current(root),
        };
        let has_no_sides = || {
            let sides = self.entry.sides.as_ref();
            sides.is_none_or(|sides| sides.known_absent(root))
        };
        is_current && (!self.without_sides || has_no_sides())
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
