//! How a sender sends memory.

use crate::in_flight::{DEFAULT_SENDER_IN_FLIGHT_LIMIT, LimitAction};
use crate::policy::{Mechanism, Plan};

/// How a [`Sender`](crate::Sender) sends.
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
    /// Forces these mechanisms, in this order, and no other; if none of them is supported, sends
    /// fail. An empty list leaves the choice to the [plan](crate::policy::plan_memory).
    ///
    /// The [switch](crate::set_zero_copy_send) overrides it.
    #[must_use]
    pub fn force_mechanisms(mut self, mechanisms: &[Mechanism]) -> Self {
        self.forced = (!mechanisms.is_empty()).then(|| Plan::of(mechanisms));
        self
    }

    /// Limits how many bytes this sender may have in flight, counted by whole pages. The default is
    /// 16 MiB. If nothing is in flight, one send of any length is allowed.
    #[must_use]
    pub fn in_flight_limit(mut self, bytes: u64) -> Self {
        self.in_flight_limit = bytes;
        self
    }

    /// Vouches that the peer is on another machine, behind a network device. Then pages sent by
    /// `vmsplice` are free once the peer has acknowledged them ([`FreeReason::Acknowledged`]);
    /// otherwise they never become a buffer again. It has no effect on tokio. It must not be used
    /// if programs on this machine capture packets (`AF_PACKET`).
    ///
    /// The peer's address does not show this: a container or virtual machine on this host has a
    /// foreign address, and its queue holds the same pages. If the claim is wrong, the peer
    /// receives what is written to the pages next.
    ///
    /// [`FreeReason::Acknowledged`]: crate::FreeReason::Acknowledged
    #[must_use]
    pub fn assume_remote_peer(mut self, is_remote: bool) -> Self {
        self.assume_remote_peer = is_remote;
        self
    }

    /// What to do with a send beyond this limit, or beyond that of the
    /// [process](crate::set_process_in_flight_limit).
    #[must_use]
    pub fn at_limit(mut self, at_limit: LimitAction) -> Self {
        self.at_limit = at_limit;
        self
    }
}
