//! The options of a sender of memory.

use crate::in_flight::{DEFAULT_SENDER_IN_FLIGHT_LIMIT, LimitAction};
use crate::policy::{Mechanism, Plan};

/// The options of a [`Sender`](crate::Sender) or a [`Channel`](crate::Channel).
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
    /// Forces these mechanisms, in this order, and no others. If none of them is supported, sends
    /// fail. If the list is empty, [`plan_memory`](crate::policy::plan_memory) chooses the
    /// mechanisms.
    ///
    /// While zero-copy sending is [switched off](crate::set_zero_copy_send), this list is ignored.
    #[must_use]
    pub fn force_mechanisms(mut self, mechanisms: &[Mechanism]) -> Self {
        self.forced = (!mechanisms.is_empty()).then(|| Plan::of(mechanisms));
        self
    }

    /// Limits how many bytes this sender may have in flight. A page that is partly in flight counts
    /// as a whole page. The default is 16 MiB. While nothing is in flight, one send of any length
    /// is allowed.
    ///
    /// Bytes that were sent with `vmsplice` count until they have left the queue of the socket: see
    /// [`in_flight_bytes`](crate::in_flight_bytes).
    #[must_use]
    pub fn in_flight_limit(mut self, bytes: u64) -> Self {
        self.in_flight_limit = bytes;
        self
    }

    /// Declares that the peer is on another machine, behind a network device. Pages that are sent
    /// with `vmsplice` can then be reused once the peer has acknowledged them
    /// ([`FreeReason::Acknowledged`]). Without this declaration, they are never reused for another
    /// buffer. The option has no effect on tokio. Do not set it if programs on this machine capture
    /// packets (`AF_PACKET`), because captured packets may still refer to the pages after the peer
    /// has acknowledged the bytes.
    ///
    /// The peer's address does not prove that the peer is remote: a container or virtual machine on
    /// this host has an address of its own, but its receive queue refers to the same pages. If the
    /// declaration is wrong, the peer receives whatever is written to the pages next.
    ///
    /// [`FreeReason::Acknowledged`]: crate::FreeReason::Acknowledged
    #[must_use]
    pub fn assume_remote_peer(mut self, is_remote: bool) -> Self {
        self.assume_remote_peer = is_remote;
        self
    }

    /// Sets what happens to a send that would exceed [`in_flight_limit`](Self::in_flight_limit) or
    /// the limit of the [process](crate::set_process_in_flight_limit).
    #[must_use]
    pub fn at_limit(mut self, at_limit: LimitAction) -> Self {
        self.at_limit = at_limit;
        self
    }
}
