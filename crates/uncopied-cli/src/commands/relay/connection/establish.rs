//! What happens before the streams are relayed: the PROXY header of the client, and connecting to a
//! target.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::io::Errno;
use socket2::SockRef;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout};
use uncopied_http::Address;

use crate::commands::relay::config::ListenerConfig;
use crate::commands::relay::listener::{RelayListener, set_tcp_options};
use crate::commands::relay::proxy_protocol::{self, Header, MAX_V2_BYTES, Parsed};
use crate::commands::relay::target::{Attempt, ConnectAddress};
use crate::error::kernel_text;
use crate::flags::ProxyVersions;
use crate::server::warning::{WarningKind, warn_limited};

use super::end::End;
use super::socket::Socket;
use super::task::{Outcome, WorkerContext};

/// The pause before the next attempt if the process has run out of descriptors.
const DESCRIPTOR_BACKOFF: Duration = Duration::from_millis(100);

/// A connection to a target.
pub(super) struct Established {
    pub(super) target: Socket,
    /// What is sent to the target first.
    pub(super) prefix: Vec<u8>,
}

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

/// Reads the PROXY header if the listener expects one, and connects to a target. Dropping the
/// future closes what it has opened.
pub(super) async fn establish(
    client: &Socket,
    listener: &RelayListener,
    context: &WorkerContext,
    outcome: &mut Outcome,
) -> Result<Established, End> {
    let config = &listener.config;
    let mut rest = Vec::new();
    let mut original = None;
    if let Some(versions) = config.accept_proxy {
        let reading = read_header(client, versions, &mut rest);
        let header = match within(config.connect_timeout, reading).await {
            Some(header) => header?,
            None => return Err(End::ProxyHeaderMissing("it did not arrive in time")),
        };
        if let Some(source) = header.source() {
            outcome.client = Address::Tcp(source);
        }
        original = Some(header);
    }
    let mut prefix = Vec::new();
    if let Some(version) = config.send_proxy {
        let own = || Header::of_connection(tcp_address(&outcome.client), client.local_address());
        // A header that says what the original connection was is passed on.
        let header = original.filter(|header| header.source().is_some());
        prefix = header.unwrap_or_else(own).encode(version);
    }
    prefix.append(&mut rest);
    let target = connect(listener, context, outcome).await?;
    Ok(Established { target, prefix })
}

fn tcp_address(address: &Address) -> Option<SocketAddr> {
    match address {
        Address::Tcp(address) => Some(*address),
        _ => None,
    }
}

/// Reads up to the end of the header. The bytes after it, which belong to the stream, remain in
/// `buffer`.
async fn read_header(
    client: &Socket,
    versions: ProxyVersions,
    buffer: &mut Vec<u8>,
) -> Result<Header, End> {
    loop {
        match proxy_protocol::parse(buffer, versions).map_err(End::ProxyHeader)? {
            Parsed::Complete { header, len } => {
                buffer.drain(..len);
                return Ok(header);
            }
            Parsed::Incomplete => {}
        }
        // An incomplete header is always shorter than the longest one.
        let room = MAX_V2_BYTES.saturating_sub(buffer.len()).max(1);
        match client.read_some(buffer, room).await {
            Ok(1..) => {}
            Ok(0) => return Err(End::ProxyHeaderMissing("the client closed the connection")),
            Err(error) => return Err(End::Client(error)),
        }
    }
}

/// Connects to the first target that accepts, in the order in which the pool offers them.
async fn connect(
    listener: &RelayListener,
    context: &WorkerContext,
    outcome: &mut Outcome,
) -> Result<Socket, End> {
    let client = tcp_address(&outcome.client).map(|address| address.ip());
    let mut last = None;
    for attempt in listener.pool.attempts(client) {
        match connect_to(&attempt, &listener.config, context).await {
            Ok(socket) => {
                outcome.target = Some(attempt.connected());
                return Ok(socket);
            }
            Err(error) if ConnectError::of(&error) == ConnectError::Local => {
                return Err(End::Local(error));
            }
            Err(error) => {
                let (target, text) = (attempt.target().address(), kernel_text(&error));
                last = Some(format!("{target}: {text}"));
                attempt.failed(&error);
            }
        }
    }
    let last = last.unwrap_or_else(|| "the name of no target has been resolved".to_owned());
    warn_limited(
        WarningKind::NoTarget,
        &format_args!(
            "{}: no target accepts connections ({last}); clients are refused until one does",
            listener.name
        ),
    );
    Err(End::NoTarget(last))
}

/// Connects to one target: to the first of its addresses that accepts.
async fn connect_to(
    attempt: &Attempt,
    config: &ListenerConfig,
    context: &WorkerContext,
) -> io::Result<Socket> {
    let mut last = None;
    for address in attempt.addresses() {
        match connect_to_address(address, config).await {
            Ok(socket) => return Ok(socket),
            Err(error) => {
                let kind = ConnectError::of(&error);
                context.stats.count_connect_error(kind);
                if kind == ConnectError::Local {
                    return Err(error);
                }
                last = Some(error);
            }
        }
    }
    // There is at least one address.
    Err(last.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

/// Connects to an address within the time limit. While the process has no descriptor left, says so
/// and tries again, because the target is not at fault.
async fn connect_to_address(
    address: &ConnectAddress,
    config: &ListenerConfig,
) -> io::Result<Socket> {
    let began = Instant::now();
    loop {
        let connecting = async {
            Ok(match address {
                ConnectAddress::Tcp(address) => Socket::Tcp(TcpStream::connect(address).await?),
                ConnectAddress::Unix(path) => Socket::Unix(UnixStream::connect(path).await?),
            })
        };
        let connected = within(config.connect_timeout, connecting)
            .await
            .unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()));
        match connected {
            Ok(socket) => {
                if let Socket::Tcp(socket) = &socket {
                    set_tcp_options(SockRef::from(socket), config.nodelay, config.keepalive)?;
                }
                return Ok(socket);
            }
            Err(error) if has_no_descriptor(&error) => {
                warn_limited(
                    WarningKind::NoDescriptor,
                    &format_args!(
                        "cannot connect to targets for now: {}; raise the limit (ulimit -n) or \
                         lower --max-connections",
                        kernel_text(&error)
                    ),
                );
                if config
                    .connect_timeout
                    .is_some_and(|limit| began.elapsed() >= limit)
                {
                    return Err(error);
                }
                sleep(DESCRIPTOR_BACKOFF).await;
            }
            Err(error) => return Err(error),
        }
    }
}

fn has_no_descriptor(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE))
}

/// Runs a future for a limited time. Returns `None` if it takes longer.
async fn within<T>(limit: Option<Duration>, future: impl Future<Output = T>) -> Option<T> {
    match limit {
        None => Some(future.await),
        Some(limit) => timeout(limit, future).await.ok(),
    }
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
