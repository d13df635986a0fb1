//! Both directions between two sockets: options, results and errors, and the function for blocking
//! code.

use std::fmt;
use std::io;
use std::sync::OnceLock;
use std::thread;

use rustix::net::{Shutdown, shutdown};

use crate::driver;
use crate::endpoint::{self, Side, StreamSocket};
use crate::error::{Error, ErrorKind};
use crate::policy::{
    Direction, Length, Mechanism, Plan, RelayPlanInput, Support, plan_relay,
    zero_copy_receive_enabled, zero_copy_send_enabled,
};
use crate::report::Report;
use crate::transfer::RelayTransfer;

/// How bytes move between two sockets.
#[derive(Clone, Debug)]
pub struct RelayOptions {
    forced: Option<Plan>,
    prefix_to_a: Vec<u8>,
    prefix_to_b: Vec<u8>,
    max_bytes_per_poll: u64,
}

impl RelayOptions {
    /// Returns the default options: mechanisms are chosen automatically.
    #[must_use]
    pub fn new() -> Self {
        Self {
            forced: None,
            prefix_to_a: Vec::new(),
            prefix_to_b: Vec::new(),
            max_bytes_per_poll: crate::mechanism::MAX_STEP_BYTES as u64,
        }
    }

    /// Forces these mechanisms, in this order and for every byte, small messages included. If none
    /// of them is supported, relaying fails. If the list is empty, the mechanisms are chosen
    /// automatically.
    ///
    /// While zero copy is switched off for [sending](crate::set_zero_copy_send) or
    /// [receiving](crate::set_zero_copy_receive), every byte is copied in spite of this list.
    #[must_use]
    pub fn force_mechanisms(mut self, mechanisms: &[Mechanism]) -> Self {
        self.forced = (!mechanisms.is_empty()).then(|| Plan::of(mechanisms));
        self
    }

    /// Sends these bytes to the second socket before those of the first one: bytes that were
    /// already read from the first one, or a header.
    #[must_use]
    pub fn prefix_to_b(mut self, bytes: Vec<u8>) -> Self {
        self.prefix_to_b = bytes;
        self
    }

    /// Sends these bytes to the first socket before those of the second one.
    #[must_use]
    pub fn prefix_to_a(mut self, bytes: Vec<u8>) -> Self {
        self.prefix_to_a = bytes;
        self
    }

    /// Sets how many bytes of each direction a relay on tokio moves before it lets other tasks run.
    /// It may move up to one step more, which is what a pipe holds. The default is 2 MiB.
    #[must_use]
    pub fn max_bytes_per_poll(mut self, bytes: u64) -> Self {
        self.max_bytes_per_poll = bytes.max(1);
        self
    }

    /// Returns the limit of [`max_bytes_per_poll`](Self::max_bytes_per_poll).
    #[cfg(feature = "tokio")]
    pub(super) fn bytes_per_poll(&self) -> u64 {
        self.max_bytes_per_poll
    }

    /// Returns the transfers to the second socket, and to the first, for an event loop of your own.
    #[must_use]
    pub fn transfers(&self) -> [RelayTransfer; 2] {
        [&self.prefix_to_b, &self.prefix_to_a].map(|prefix| self.transfer(prefix))
    }

    /// Returns the transfer of one direction, which sends `prefix` first.
    pub(crate) fn transfer(&self, prefix: &[u8]) -> RelayTransfer {
        let is_on = zero_copy_send_enabled() && zero_copy_receive_enabled();
        let forced = self.forced.filter(|_| is_on);
        let plan = forced.unwrap_or_else(|| {
            let input = RelayPlanInput {
                zero_copy_enabled: is_on,
                ..RelayPlanInput::new()
            };
            plan_relay(&input, &Support::of_process())
        });
        let mut transfer = RelayTransfer::new(Length::UntilEof, plan).after(prefix.to_vec());
        if forced.is_some() {
            transfer.set_always_bulk();
        }
        if !is_on {
            transfer.set_switched_off();
        }
        transfer
    }
}

impl Default for RelayOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// What was moved between two sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Relayed {
    /// The bytes that the second socket accepted from the first.
    pub a_to_b: Report,
    /// The bytes that the first socket accepted from the second.
    pub b_to_a: Report,
}

/// One of the two sockets of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayEnd {
    /// The first socket.
    A,
    /// The second socket.
    B,
}

/// The error of a relay: which socket has failed, and what had been moved in each direction.
#[derive(Debug)]
pub struct RelayError {
    from: RelayEnd,
    error: Error,
    relayed: Box<Relayed>,
}

impl RelayError {
    pub(super) fn new(from: RelayEnd, error: Error, relayed: Relayed) -> Self {
        Self {
            from,
            error,
            relayed: Box::new(relayed),
        }
    }

    /// Returns the socket whose bytes were being moved.
    #[must_use]
    pub fn from_end(&self) -> RelayEnd {
        self.from
    }

    /// Returns the socket that has failed. Returns `None` if neither has: see [`Error::side`].
    #[must_use]
    pub fn failed_end(&self) -> Option<RelayEnd> {
        let end = match (self.error.side()?, self.from) {
            (Side::Source, from) => from,
            (Side::Sink, RelayEnd::A) => RelayEnd::B,
            (Side::Sink, RelayEnd::B) => RelayEnd::A,
        };
        Some(end)
    }

    /// Returns the error of the direction that has failed.
    #[must_use]
    pub fn error(&self) -> &Error {
        &self.error
    }

    /// Returns what was moved before the error.
    #[must_use]
    pub fn relayed(&self) -> &Relayed {
        &self.relayed
    }
}

impl fmt::Display for RelayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.from {
            RelayEnd::A => "from the first socket to the second",
            RelayEnd::B => "from the second socket to the first",
        };
        write!(f, "{direction}: {}", self.error)
    }
}

impl std::error::Error for RelayError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}

impl From<RelayError> for io::Error {
    fn from(error: RelayError) -> Self {
        error.error.into()
    }
}

/// Moves bytes between two sockets, in both directions, until both streams have ended. When one
/// ends, the other socket is shut down for writing.
///
/// This is what `tokio::io::copy_bidirectional` does, for blocking code: the sockets may be
/// blocking or non-blocking. One direction runs on this thread, and the other on a second one.
///
/// # Errors
///
/// [`RelayError`] if one of the sockets fails, or if no thread can be started. It says what was
/// moved in both directions. Both sockets are then shut down, because that is what ends the other
/// direction.
pub fn copy_bidirectional(
    a: &impl StreamSocket,
    b: &impl StreamSocket,
) -> Result<Relayed, RelayError> {
    copy_bidirectional_with(a, b, &RelayOptions::new())
}

/// Does the same as [`copy_bidirectional`], with options.
///
/// # Errors
///
/// As for [`copy_bidirectional`].
pub fn copy_bidirectional_with(
    a: &impl StreamSocket,
    b: &impl StreamSocket,
    options: &RelayOptions,
) -> Result<Relayed, RelayError> {
    let (a, b) = (a.as_fd(), b.as_fd());
    for (end, socket) in [(RelayEnd::A, a), (RelayEnd::B, b)] {
        endpoint::check_stream_socket(socket).map_err(|errno| {
            let kind = ErrorKind::NotAStreamSocket;
            let error = Error::before_transfer(kind, Some("getsockopt"), Some(errno.into()));
            let error = error.in_direction(Direction::SocketToSocket);
            RelayError::new(end, error.at_side(Side::Source), Relayed::default())
        })?;
    }
    let [mut to_b, mut to_a] = options.transfers();
    let first_error = OnceLock::new();
    let run = |transfer: &mut RelayTransfer, from, source, sink| {
        let ran = driver::blocking::run_relay(transfer, &source, &sink)
            .and_then(|()| transfer.pass_on_end(sink));
        if let Err(error) = ran {
            // Only the first error counts: the other direction fails because of what follows.
            let _ = first_error.set((from, error));
            // Ignore errors, because the sockets may have failed already.
            let _ = (shutdown(a, Shutdown::Both), shutdown(b, Shutdown::Both));
        }
    };
    thread::scope(|scope| {
        let backwards = || run(&mut to_a, RelayEnd::B, b, a);
        match thread::Builder::new().spawn_scoped(scope, backwards) {
            Ok(_) => run(&mut to_b, RelayEnd::A, a, b),
            Err(cause) => {
                let error = to_b.driver_error(Side::Source, "clone", cause);
                let _ = first_error.set((RelayEnd::A, error));
            }
        }
    });
    let relayed = Relayed {
        a_to_b: to_b.into_report(),
        b_to_a: to_a.into_report(),
    };
    match first_error.into_inner() {
        None => Ok(relayed),
        Some((from, error)) => Err(RelayError::new(from, error, relayed)),
    }
}
