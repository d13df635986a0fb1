//! What the streams of a server have in common.

use std::sync::Arc;

use uncopied::Mechanism;
use uncopied::plan::Plan;

use crate::totals::Totals;

/// How streams send.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What is forced for the bytes of files.
    pub(crate) for_files: Option<Plan>,
    /// What is forced for pages.
    pub(crate) for_pages: Option<Plan>,
    pub(crate) totals: Arc<Totals>,
}

impl Options {
    /// Forces these mechanisms, in this order: the bytes of files go by those of them that send
    /// [files](Mechanism::FOR_FILES), pages of the arena by those that send
    /// [memory](Mechanism::FOR_MEMORY), and `copy` sends both. If there are none for files, or for pages,
    /// the choice for these stays with the stream: `sendfile`, then `splice`, then `copy` for files;
    /// for pages the [plan](uncopied::plan::plan_memory) for each slice. Slices of pages below 32 KiB are
    /// copied in any case.
    ///
    /// `msg_zerocopy` is left out: its notices come on the socket's error queue, which tokio takes for a
    /// broken connection.
    #[must_use]
    pub fn mechanisms(mut self, mechanisms: &[Mechanism]) -> Self {
        let forced = |can_send: &dyn Fn(&Mechanism) -> bool| {
            let some: Vec<_> = mechanisms.iter().copied().filter(can_send).collect();
            (!some.is_empty()).then(|| Plan::of(&some))
        };
        self.for_files = forced(&|it| Mechanism::FOR_FILES.contains(it));
        self.for_pages =
            forced(&|it| Mechanism::FOR_MEMORY.contains(it) && *it != Mechanism::MsgZerocopy);
        self
    }

    /// Where the streams count what they send.
    #[must_use]
    pub fn totals(mut self, totals: Arc<Totals>) -> Self {
        self.totals = totals;
        self
    }
}
