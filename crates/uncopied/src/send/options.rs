//! How a sender sends memory.

use crate::in_flight::{DEFAULT_SENDER_IN_FLIGHT_LIMIT, LimitAction};
use crate::policy::{Mechanism, Plan};

/// How a [`Sender`] sends.
#[derive(Clone, Debug)]
pub struct SendOptions {
    pub(crate) forced: Option<Plan>,
    pub(crate) in_flight_limit: u64,
    pub(crate) at_limit: LimitAction,
    pub(crate) assume_remote_peer: bool,
}

impl Default for SendOptions {
    fn default() -> Self {
        Self {
            forced: None,
            in_flight_limit: DEFAULT_SENDER_IN_FLIGHT_LIMIT,
            at_limit: LimitAction::Copy,
            assume_remote_peer: false,
        }
    }
}

impl SendOptions {
    /// Forces these mechanisms, in this order, and no other; if none of them is supported, sends fail.
    /// An empty list leaves the choice to the [plan](crate::policy::plan_memory).
    ///
    /// The [switch](crate::set_zero_copy_send) overrules it.
    #[must_use]
    pub fn force_mechanisms(mut self, mechanisms: &[Mechanism]) -> Self {
        self.forced = (!mechanisms.is_empty()).then(|| Plan::of(mechanisms));
        self
    }

    /// How many bytes this sender may have lent at a time, counted by whole pages; 16 MiB unless said
    /// otherwise. One send is always granted, however long.
    #[must_use]
    pub fn in_flight_limit(mut self, bytes: u64) -> Self {
        self.in_flight_limit = bytes;
        self
    }

    /// Vouches that the peer is on another machine, reached by a network device. Then what went by
    /// `vmsplice` comes back when the peer has acknowledged it ([`FreeReason::Acknowledged`]); otherwise it
    /// never does. Not on tokio, and not where other programs on this machine read packets (`AF_PACKET`).
    ///
    /// An address does not tell: a container or a virtual machine on this host looks like a stranger, and
    /// its queue holds the very pages. Whoever vouches wrongly has the peer read what is written to them
    /// next.
    ///
    /// [`FreeReason::Acknowledged`]: crate::FreeReason::Acknowledged
    #[must_use]
    pub fn assume_remote_peer(mut self, is_remote: bool) -> Self {
        self.assume_remote_peer = is_remote;
        self
    }

    /// What becomes of what lies beyond it, or beyond what the [process](crate::set_process_in_flight_limit) may
    /// lend.
    #[must_use]
    pub fn at_limit(mut self, at_limit: LimitAction) -> Self {
        self.at_limit = at_limit;
        self
    }
}
