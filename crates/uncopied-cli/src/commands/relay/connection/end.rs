//! Why a connection ended.

use std::fmt;
use std::io;

use uncopied::Side;

use crate::commands::relay::proxy_protocol::Invalid;
use crate::commands::relay::stats::Direction;
use crate::error::kernel_text;

/// The ways in which connections end, as metrics count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(in crate::commands::relay) enum EndKind {
    /// Both streams have ended, and every byte was passed on.
    Finished,
    /// The client's socket has failed.
    Client,
    /// The target's socket has failed.
    Target,
    /// The relay itself has failed.
    Relay,
    /// No target could be connected to.
    NoTarget,
    /// The client sent no valid header of the PROXY protocol, or not in time.
    ProxyHeader,
    /// No byte has moved for too long.
    IdleTimeout,
    /// One stream had ended, and no byte of the other has moved for too long.
    HalfCloseTimeout,
    /// There were too many connections.
    Refused,
    /// The relay was stopped.
    Stopped,
}

impl EndKind {
    pub(in crate::commands::relay) const ALL: [Self; 10] = [
        Self::Finished,
        Self::Client,
        Self::Target,
        Self::Relay,
        Self::NoTarget,
        Self::ProxyHeader,
        Self::IdleTimeout,
        Self::HalfCloseTimeout,
        Self::Refused,
        Self::Stopped,
    ];

    /// Returns the name in logs and metrics.
    pub(in crate::commands::relay) const fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Client => "client_error",
            Self::Target => "target_error",
            Self::Relay => "relay_error",
            Self::NoTarget => "no_target",
            Self::ProxyHeader => "proxy_header",
            Self::IdleTimeout => "idle_timeout",
            Self::HalfCloseTimeout => "half_close_timeout",
            Self::Refused => "refused",
            Self::Stopped => "stopped",
        }
    }
}

/// The failure of one of the streams of a connection.
#[derive(Debug)]
pub(in crate::commands::relay) struct RelayFailure {
    /// The direction of the stream.
    pub(super) direction: Direction,
    pub(super) error: uncopied::Error,
}

/// One of the two peers of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands::relay) enum Peer {
    Client,
    Target,
}

impl RelayFailure {
    /// Returns the peer whose socket has failed. `None` if the relay itself has.
    pub(super) fn peer(&self) -> Option<Peer> {
        Some(match (self.error.side()?, self.direction) {
            (Side::Source, Direction::ToTarget) | (Side::Sink, Direction::ToClient) => Peer::Client,
            (Side::Sink, Direction::ToTarget) | (Side::Source, Direction::ToClient) => Peer::Target,
        })
    }
}

/// Why a connection ended, with what is known about it.
#[derive(Debug)]
pub(in crate::commands::relay) enum End {
    Finished,
    /// A socket has failed, or the relay itself.
    Failed(RelayFailure),
    /// No target could be connected to. The text says why, for the last target that was tried.
    NoTarget(String),
    /// The first bytes are not a header of the PROXY protocol.
    ProxyHeader(Invalid),
    /// The header of the PROXY protocol is incomplete: the client has ended its stream, or did not
    /// send it in time.
    ProxyHeaderMissing(&'static str),
    /// This process or host lacks descriptors, ports or memory for a connection to a target.
    Local(io::Error),
    /// The client's socket has failed before a target was connected to.
    Client(io::Error),
    IdleTimeout,
    HalfCloseTimeout,
    Refused,
    Stopped,
}

impl End {
    pub(in crate::commands::relay) fn kind(&self) -> EndKind {
        match self {
            Self::Finished => EndKind::Finished,
            Self::Failed(failure) => match failure.peer() {
                Some(Peer::Client) => EndKind::Client,
                Some(Peer::Target) => EndKind::Target,
                None => EndKind::Relay,
            },
            Self::Local(_) => EndKind::Relay,
            Self::NoTarget(_) => EndKind::NoTarget,
            Self::ProxyHeader(_) | Self::ProxyHeaderMissing(_) => EndKind::ProxyHeader,
            Self::Client(_) => EndKind::Client,
            Self::IdleTimeout => EndKind::IdleTimeout,
            Self::HalfCloseTimeout => EndKind::HalfCloseTimeout,
            Self::Refused => EndKind::Refused,
            Self::Stopped => EndKind::Stopped,
        }
    }

    /// Returns what went wrong. `None` if nothing did.
    pub(in crate::commands::relay) fn error(&self) -> Option<&dyn fmt::Display> {
        match self {
            Self::Finished => None,
            other => Some(other),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => f.write_str("both streams have ended"),
            Self::Failed(failure) => {
                let peer = match failure.peer() {
                    Some(Peer::Client) => "client: ",
                    Some(Peer::Target) => "target: ",
                    None => "",
                };
                write!(f, "{peer}{}", failure.error)
            }
            Self::NoTarget(why) => write!(f, "no target can be connected to: {why}"),
            Self::Local(error) => {
                write!(
                    f,
                    "cannot open a connection to a target: {}",
                    kernel_text(error)
                )
            }
            Self::ProxyHeader(invalid) => invalid.fmt(f),
            Self::ProxyHeaderMissing(why) => write!(f, "no PROXY header: {why}"),
            Self::Client(error) => write!(f, "client: {}", kernel_text(error)),
            Self::IdleTimeout => f.write_str("no byte has moved for --idle-timeout"),
            Self::HalfCloseTimeout => f.write_str(
                "one side has ended its stream, and no byte has moved for --half-close-timeout",
            ),
            Self::Refused => f.write_str("all connections are in use (--max-connections)"),
            Self::Stopped => f.write_str("the relay was stopped"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_counter() {
        for (index, kind) in EndKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
    }
}
