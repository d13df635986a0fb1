//! The result of a send of memory.

use crate::in_flight::Completion;
use crate::report::Report;
use crate::transfer::MemoryTransfer;

/// What a send did.
#[derive(Clone, Debug)]
pub struct Sent {
    report: Report,
    completion: Completion,
}

impl From<MemoryTransfer> for Sent {
    fn from(transfer: MemoryTransfer) -> Self {
        let (report, completion) = transfer.finish();
        Self { report, completion }
    }
}

impl Sent {
    /// How many bytes the socket took.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.report.bytes()
    }

    /// By which mechanisms, and every step down. Whether the kernel copied what it was lent is not
    /// known yet: that is for the completion to tell.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// When the pages are free.
    pub fn completion(&self) -> &Completion {
        &self.completion
    }

    /// When the pages are free: to be kept.
    pub fn into_completion(self) -> Completion {
        self.completion
    }
}
