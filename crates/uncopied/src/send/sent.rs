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
    /// How many bytes the socket accepted.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.report.bytes()
    }

    /// The bytes by mechanism, and every fallback. Whether the kernel copied after all is not known
    /// yet: the completion reports it.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Reports when the pages are free.
    pub fn completion(&self) -> &Completion {
        &self.completion
    }

    /// Reports when the pages are free.
    pub fn into_completion(self) -> Completion {
        self.completion
    }
}
