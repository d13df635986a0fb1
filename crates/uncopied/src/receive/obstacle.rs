//! Why bytes were copied instead of mapped.

use std::fmt;
use std::os::fd::BorrowedFd;

use crate::endpoint::IpAddresses;
use crate::mechanism::socket_to_memory::MemorySource;
use crate::policy::{Mechanism, Plan, zero_copy_receive_enabled};
use crate::report::Report;
use crate::sys::{Errno, payload_of_peer};

/// Why bytes were copied that could have been mapped otherwise. The text says what would help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MapObstacle {
    /// Zero-copy receiving is [switched off](crate::set_zero_copy_receive).
    SwitchedOff,
    /// The socket is not a TCP socket.
    NotTcp,
    /// The [forced mechanisms](crate::ReceiveOptions::force_mechanisms) do not include
    /// `map_receive`.
    NotForced,
    /// The bytes of this socket cannot be mapped, for the reason that this errno gives.
    /// `EOPNOTSUPP` may mean that the socket has kernel TLS.
    Unsupported(Errno),
    /// The program [holds](crate::ReceiveOptions::max_held_chunks) too many chunks.
    ChunksHeld,
    /// The chunks were so short that a copy is cheaper.
    ShortChunks,
    /// The payload of the packets is not a multiple of the page size.
    PartialPages {
        /// The number of bytes in a packet, as the kernel estimates it.
        payload: u32,
    },
    /// The peer is on this machine, and sends pages that cannot be mapped: those of files and
    /// processes, or parts of larger pages.
    SameMachine,
    /// The network card, or its driver, does not put each payload into pages of its own.
    Interface,
}

impl fmt::Display for MapObstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SwitchedOff => write!(f, "zero-copy receiving is switched off"),
            Self::NotTcp => write!(f, "the kernel maps only what a TCP socket has received"),
            Self::NotForced => write!(f, "the forced mechanisms do not include map_receive"),
            Self::Unsupported(errno) => {
                write!(f, "the bytes of this socket cannot be mapped: {errno}")
            }
            Self::ChunksHeld => write!(
                f,
                "the program holds too many chunks: drop them earlier, or allow more"
            ),
            Self::ShortChunks => write!(
                f,
                "the chunks are short, so a copy is cheaper: receive more at a time"
            ),
            Self::PartialPages { payload } => write!(
                f,
                "packets with {payload} bytes do not fill pages: \
                 set a maximum segment size for payloads of whole pages, \
                 and an MTU that is large enough"
            ),
            Self::SameMachine => write!(
                f,
                "the peer is on this machine, where only bytes that were sent with MSG_ZEROCOPY or \
                 SEND_ZC arrive in pages that can be mapped"
            ),
            Self::Interface => write!(
                f,
                "the network card does not put payloads into pages of their own: \
                 switch header splitting on (ethtool -G INTERFACE tcp-data-split on), \
                 and for virtio mergeable buffers off (mrg_rxbuf=off)"
            ),
        }
    }
}

/// If at least this part of the bytes was mapped, in percent, there is no obstacle.
const UNOBSTRUCTED_PERCENT: f64 = 95.0;

/// Finds the obstacle to mapping what `source` receives from `socket`. `report` says what it has
/// received.
pub(super) fn find(
    report: &Report,
    source: &MemorySource,
    forced: Option<Plan>,
    socket: BorrowedFd<'_>,
) -> Option<MapObstacle> {
    let percent = report.zero_copy_percent()?;
    if percent >= UNOBSTRUCTED_PERCENT {
        return None;
    }
    if !zero_copy_receive_enabled() {
        return Some(MapObstacle::SwitchedOff);
    }
    if forced.is_some_and(|plan| !plan.mechanisms().contains(&Mechanism::MapReceive)) {
        return Some(MapObstacle::NotForced);
    }
    if !source.is_tcp() {
        return Some(MapObstacle::NotTcp);
    }
    if let Some(errno) = source.support.refusal(Mechanism::MapReceive) {
        return Some(MapObstacle::Unsupported(errno));
    }
    if source.lacks_window() {
        return Some(MapObstacle::ChunksHeld);
    }
    if !source.has_measured() {
        return Some(MapObstacle::ShortChunks);
    }
    let page = rustix::param::page_size() as u32;
    let payload = payload_of_peer(socket).unwrap_or(0);
    if !payload.is_multiple_of(page) {
        return Some(MapObstacle::PartialPages { payload });
    }
    let is_local = IpAddresses::of(socket).is_local();
    Some(match is_local {
        true => MapObstacle::SameMachine,
        false => MapObstacle::Interface,
    })
}
