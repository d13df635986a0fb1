//! Settings that all streams of a server share.

use std::sync::Arc;

use uncopied::policy::{FilePlanInput, Length, Plan, SourceKind, plan_file};
use uncopied::{Mechanism, Support, zero_copy_send_enabled};

use crate::totals::Totals;

/// Configures which mechanisms the streams send with, and where they count the bytes.
#[derive(Clone, Debug, Default)]
pub struct StreamOptions {
    /// The forced plan for file data. If `None`, the usual plan applies.
    pub(crate) forced_for_files: Option<Plan>,
    /// The forced plan for pages of the arena. If `None`, the usual plan applies.
    pub(crate) forced_for_pages: Option<Plan>,
    pub(crate) totals: Arc<Totals>,
}

impl StreamOptions {
    /// Forces the streams to use these mechanisms, in this order. File data is sent with those in
    /// the list that can send [files](Mechanism::FILE_TO_SOCKET), and pages of the arena with those
    /// that can send [memory](Mechanism::MEMORY_TO_SOCKET); `copy` can send both. If the list has
    /// no mechanism for files, file data follows the usual plan,
    /// [`plan_file`](uncopied::policy::plan_file). If the list has no mechanism for memory, pages
    /// follow [`plan_memory`](uncopied::policy::plan_memory). Slices of pages shorter than 32 KiB
    /// are always copied, unless they are the rest of a longer slice.
    ///
    /// `msg_zerocopy` is ignored, because its notifications arrive on the socket's error queue, and
    /// tokio mistakes an event on that queue for a broken connection.
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

    /// Sets the totals to which the streams add the bytes that they send.
    #[must_use]
    pub fn totals(mut self, totals: Arc<Totals>) -> Self {
        self.totals = totals;
        self
    }

    /// Returns the plan with which streams send `length` bytes of a file: the forced mechanisms
    /// that the process has not been refused, or else the usual plan. If zero copy is switched off,
    /// every byte is copied.
    #[must_use]
    pub fn file_plan(&self, length: Length) -> Plan {
        let support = Support::of_process();
        let zero_copy_enabled = zero_copy_send_enabled();
        match self.forced_for_files {
            Some(forced) if zero_copy_enabled => {
                forced.without(|mechanism| support.refusal(mechanism).is_some())
            }
            _ => {
                let mut input = FilePlanInput::new(SourceKind::File, length);
                input.zero_copy_enabled = zero_copy_enabled;
                plan_file(&input, &support)
            }
        }
    }
}
