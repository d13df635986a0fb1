//! Settings that the streams of a server share.

use std::sync::Arc;

use uncopied::Mechanism;
use uncopied::policy::Plan;

use crate::totals::Totals;

/// How streams send.
#[derive(Clone, Debug, Default)]
pub struct StreamOptions {
    /// The forced plan for the bytes of files.
    pub(crate) forced_for_files: Option<Plan>,
    /// The forced plan for pages.
    pub(crate) forced_for_pages: Option<Plan>,
    pub(crate) totals: Arc<Totals>,
}

impl StreamOptions {
    /// Forces these mechanisms, in this order. Bytes of files go by those that send
    /// [files](Mechanism::FILE_TO_SOCKET), pages of the arena by those that send
    /// [memory](Mechanism::MEMORY_TO_SOCKET), and `copy` sends both. If the list has none for files
    /// or none for pages, these follow the usual plan:
    /// [`plan_file`](uncopied::policy::plan_file) or
    /// [`plan_memory`](uncopied::policy::plan_memory). Slices of pages below 32 KiB are always
    /// copied.
    ///
    /// `msg_zerocopy` is ignored: its notifications arrive on the socket's error queue, which tokio
    /// takes for a broken connection.
    #[must_use]
    pub fn force_mechanisms(mut self, mechanisms: &[Mechanism]) -> Self {
        let forced = |can_send: &dyn Fn(&Mechanism) -> bool| {
            let usable: Vec<_> = mechanisms.iter().copied().filter(can_send).collect();
            (!usable.is_empty()).then(|| Plan::of(&usable))
        };
        self.forced_for_files = forced(&|it| Mechanism::FILE_TO_SOCKET.contains(it));
        self.forced_for_pages =
            forced(&|it| Mechanism::MEMORY_TO_SOCKET.contains(it) && *it != Mechanism::MsgZerocopy);
        self
    }

    /// Where the streams count the bytes that they send.
    #[must_use]
    pub fn totals(mut self, totals: Arc<Totals>) -> Self {
        self.totals = totals;
        self
    }
}
