//! The result of sending memory.

use crate::in_flight::Completion;
use crate::report::Report;
use crate::transfer::MemoryTransfer;

/// The result of a send: what was sent, and when its memory can be reused.
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
    /// Returns how many bytes the socket accepted.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.report.bytes()
    }

    /// Returns how many bytes each mechanism sent, and the fallbacks. It is not known yet whether
    /// the kernel copied bytes of a zero-copy mechanism after all: the
    /// [completion](Self::completion) reports that.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Returns the completion, which reports when the kernel is done with the memory.
    pub fn completion(&self) -> &Completion {
        &self.completion
    }

    /// Returns the completion, which reports when the kernel is done with the memory.
    pub fn into_completion(self) -> Completion {
        self.completion
    }
}
