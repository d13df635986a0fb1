//! Connects to a target.

use std::io;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use socket2::SockRef;

use crate::commands::relay::config::ListenerConfig;
use crate::commands::relay::listener::{RelayListener, set_tcp_options};
use crate::commands::relay::target::{
    Attempt, Attempts, ConnectAddress, Connection as TargetConnection,
};
use crate::error::kernel_text;
use crate::server::warning::{WarningKind, warn_limited};

use super::end::End;
use super::side::Side;
use super::socket::Socket;
use super::{Turn, WorkerContext};

/// The pause before the next attempt if the process has run out of descriptors.
const DESCRIPTOR_BACKOFF: Duration = Duration::from_millis(100);

/// The kinds of errors of attempts to connect to a target, as metrics count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(in crate::commands::relay) enum ConnectError {
    Refused,
    TimedOut,
    Unreachable,
    /// This process or host lacks descriptors, ports or memory. Not the fault of the target.
    Local,
    Other,
}

impl ConnectError {
    pub(in crate::commands::relay) const ALL: [Self; 5] = [
        Self::Refused,
        Self::TimedOut,
        Self::Unreachable,
        Self::Local,
        Self::Other,
    ];

    /// Returns the name in metrics.
    pub(in crate::commands::relay) const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::Local => "local",
            Self::Other => "other",
        }
    }

    fn of(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::TimedOut {
            return Self::TimedOut;
        }
        match Errno::from_io_error(error) {
            // For a Unix socket: its file is missing, or its queue is full.
            Some(Errno::CONNREFUSED | Errno::NOENT | Errno::AGAIN) => Self::Refused,
            Some(Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::NETDOWN) => Self::Unreachable,
            Some(
                Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL,
            ) => Self::Local,
            _ => Self::Other,
        }
    }
}

/// A connection to a target that is being opened: the attempts so far, and the one in progress.
pub(super) struct Connecting {
    attempts: Attempts,
    attempt: Option<AttemptInProgress>,
    /// The target that has failed last, and why.
    last: Option<String>,
    /// What is sent to the target first.
    prefix: Vec<u8>,
}

/// An attempt to connect to one target, with its addresses one after the other.
struct AttemptInProgress {
    attempt: Attempt,
    /// The number of the current address.
    address: usize,
    /// `None` while the process has no descriptor for it.
    side: Option<Side>,
    /// When the current address must be connected.
    deadline: Option<Instant>,
    /// The error of the last address.
    error: Option<io::Error>,
}

/// A connection to a target.
pub(super) struct Established {
    pub(super) target: Side,
    pub(super) connection: TargetConnection,
    /// What is sent to the target first.
    pub(super) prefix: Vec<u8>,
}

impl Connecting {
    /// Prepares to connect. `prefix` is what is sent to the target first, and `client` the client's
    /// IP address.
    pub(super) fn new(listener: &RelayListener, client: Option<IpAddr>, prefix: Vec<u8>) -> Self {
        Self {
            attempts: listener.pool.attempts(client),
            attempt: None,
            last: None,
            prefix,
        }
    }

    /// Returns the socket that is being connected.
    pub(super) fn side(&mut self) -> Option<&mut Side> {
        self.attempt.as_mut()?.side.as_mut()
    }

    /// Goes on until a target is connected, or an attempt has to wait. The targets are tried in the
    /// order in which the pool offers them.
    pub(super) fn advance(
        &mut self,
        listener: &RelayListener,
        context: &WorkerContext,
        watch: &dyn Fn(&Socket) -> io::Result<()>,
        now: Instant,
    ) -> Result<ControlFlow<Established, Turn>, End> {
        loop {
            let mut current = match self.attempt.take() {
                Some(current) => current,
                None => match self.attempts.next() {
                    Some(attempt) => AttemptInProgress::new(attempt, listener, now),
                    None => return Err(self.no_target(listener)),
                },
            };
            match current.advance(listener, context, watch, now) {
                Ok(None) => {
                    let until = current.wake_up_time(now);
                    self.attempt = Some(current);
                    return Ok(ControlFlow::Continue(Turn::Wait(until)));
                }
                Ok(Some(target)) => {
                    return Ok(ControlFlow::Break(Established {
                        target,
                        connection: current.attempt.connected(),
                        prefix: std::mem::take(&mut self.prefix),
                    }));
                }
                Err(error) if ConnectError::of(&error) == ConnectError::Local => {
                    return Err(End::Local(error));
                }
                Err(error) => {
                    let target = current.attempt.target().address();
                    self.last = Some(format!("{target}: {}", kernel_text(&error)));
                    current.attempt.failed(&error);
                }
            }
        }
    }

    fn no_target(&mut self, listener: &RelayListener) -> End {
        let last = self.last.take();
        let last = last.unwrap_or_else(|| "the name of no target has been resolved".to_owned());
        warn_limited(
            WarningKind::NoTarget,
            &format_args!(
                "{}: no target accepts connections ({last}); clients are refused until one does",
                listener.name
            ),
        );
        End::NoTarget(last)
    }
}

impl AttemptInProgress {
    fn new(attempt: Attempt, listener: &RelayListener, now: Instant) -> Self {
        Self {
            attempt,
            address: 0,
            side: None,
            deadline: deadline(&listener.config, now),
            error: None,
        }
    }

    /// Returns when to go on without an event.
    fn wake_up_time(&self, now: Instant) -> Option<Instant> {
        match &self.side {
            Some(_) => self.deadline,
            None => Some(now + DESCRIPTOR_BACKOFF),
        }
    }

    /// Goes on until an address is connected, or has to be waited for (`None`). Fails with the
    /// error of the last address, or with one that is not the fault of the target.
    fn advance(
        &mut self,
        listener: &RelayListener,
        context: &WorkerContext,
        watch: &dyn Fn(&Socket) -> io::Result<()>,
        now: Instant,
    ) -> io::Result<Option<Side>> {
        loop {
            let Some(address) = self.attempt.addresses().get(self.address) else {
                // There is at least one address.
                let error = self.error.take();
                return Err(error.unwrap_or_else(|| io::ErrorKind::NotFound.into()));
            };
            let is_late = self.deadline.is_some_and(|deadline| now >= deadline);
            let error = match self.side.take() {
                Some(side) => match side.connected() {
                    Ok(true) => return Ok(Some(side)),
                    Ok(false) if !is_late => {
                        self.side = Some(side);
                        return Ok(None);
                    }
                    Ok(false) => io::ErrorKind::TimedOut.into(),
                    Err(error) => error,
                },
                None => match open(address, &listener.config, watch) {
                    Ok(socket) => {
                        self.side = Some(Side::new(socket));
                        return Ok(None);
                    }
                    Err(error) if has_no_descriptor(&error) && !is_late => {
                        warn_no_descriptor(&error);
                        return Ok(None);
                    }
                    Err(error) => error,
                },
            };
            let kind = ConnectError::of(&error);
            context.stats.count_connect_error(kind);
            if kind == ConnectError::Local {
                return Err(error);
            }
            self.error = Some(error);
            self.address += 1;
            self.deadline = deadline(&listener.config, now);
        }
    }
}

fn deadline(config: &ListenerConfig, now: Instant) -> Option<Instant> {
    config.connect_timeout.map(|limit| now + limit)
}

/// Begins to connect to an address, and has epoll watch the socket.
fn open(
    address: &ConnectAddress,
    config: &ListenerConfig,
    watch: &dyn Fn(&Socket) -> io::Result<()>,
) -> io::Result<Socket> {
    let socket = Socket::connect(address)?;
    if socket.is_tcp() {
        set_tcp_options(SockRef::from(&socket), config.nodelay, config.keepalive)?;
    }
    watch(&socket)?;
    Ok(socket)
}

/// Says that the process has no descriptor left. The attempt is made again, because the target is
/// not at fault.
fn warn_no_descriptor(error: &io::Error) {
    warn_limited(
        WarningKind::NoDescriptor,
        &format_args!(
            "cannot connect to targets for now: {}; raise the limit (ulimit -n) or lower \
             --max-connections",
            kernel_text(error)
        ),
    );
}

fn has_no_descriptor(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_error_has_a_counter_and_an_errno() {
        for (index, kind) in ConnectError::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
        for (errno, kind) in [
            (Errno::CONNREFUSED, ConnectError::Refused),
            (Errno::NOENT, ConnectError::Refused),
            (Errno::TIMEDOUT, ConnectError::TimedOut),
            (Errno::HOSTUNREACH, ConnectError::Unreachable),
            (Errno::MFILE, ConnectError::Local),
            (Errno::ADDRNOTAVAIL, ConnectError::Local),
            (Errno::CONNRESET, ConnectError::Other),
        ] {
            assert_eq!(ConnectError::of(&errno.into()), kind, "{errno:?}");
        }
        let timeout = io::ErrorKind::TimedOut.into();
        assert_eq!(ConnectError::of(&timeout), ConnectError::TimedOut);
    }
}
