//! What the streams of a server have in common.

use std::sync::Arc;

use uncopied::Mechanism;
use uncopied::policy::Plan;

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
    /// [files](Mechanism::FILE_TO_SOCKET), pages of the arena by those that send
    /// [memory](Mechanism::MEMORY_TO_SOCKET), and `copy` sends both. If there are none for files, or
    /// none for pages, these go by the plan: [`plan_file`](uncopied::policy::plan_file) or
    /// [`plan_memory`](uncopied::policy::plan_memory). Slices of pages below 32 KiB are always copied.
    ///
    /// `msg_zerocopy` is left out: its notices come on the socket's error queue, which tokio takes for a
    /// broken connection.
    #[must_use]
    pub fn force_mechanisms(mut self, mechanisms: &[Mechanism]) -> Self {
        let forced = |can_send: &dyn Fn(&Mechanism) -> bool| {
            let some: Vec<_> = mechanisms.iter().copied().filter(can_send).collect();
            (!some.is_empty()).then(|| Plan::of(&some))
        };
        self.for_files = forced(&|it| Mechanism::FILE_TO_SOCKET.contains(it));
        self.for_pages =
            forced(&|it| Mechanism::MEMORY_TO_SOCKET.contains(it) && *it != Mechanism::MsgZerocopy);
        self
    }

    /// Where the streams count what they send.
    #[must_use]
    pub fn totals(mut self, totals: Arc<Totals>) -> Self {
        self.totals = totals;
        self
    }
}
