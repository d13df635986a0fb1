//! The stages of one connection, from its acceptance to its end.

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::epoll::EventFlags;
use tokio::sync::OwnedSemaphorePermit;
use uncopied_http::Address;

use crate::commands::relay::listener::{Accepted, RelayListener};
use crate::commands::relay::log::LogRecord;
use crate::commands::relay::proxy_protocol::Header;
use crate::commands::relay::stats::{RelayedBytes, WorkerStats};
use crate::commands::relay::target::Connection as TargetConnection;
use crate::server::access_log::AccessLog;
use crate::server::connections::{Commanded as _, ConnectionCommand};

use super::connecting::{Connecting, Established};
use super::end::{End, EndKind, Peer};
use super::header::HeaderReader;
use super::relaying::Relaying;
use super::side::Side;
use super::socket::Socket;
use super::state::{ConnectionState, Phase};

/// The maximum time for which a connection that has failed waits until the peers have received what
/// was sent to them.
const MAX_DELIVERY_TIME: Duration = Duration::from_secs(5);

/// The interval at which such a connection looks whether the peers have received everything.
const DELIVERY_INTERVAL: Duration = Duration::from_millis(20);

/// What all connections of a worker have in common.
pub(in crate::commands::relay) struct WorkerContext {
    pub(in crate::commands::relay) stats: Arc<WorkerStats>,
    pub(in crate::commands::relay) log: Option<Arc<AccessLog>>,
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands::relay) enum Turn {
    /// An event, but no longer than until this time.
    Wait(Option<Instant>),
    /// Only that other connections have had their turn.
    Again,
}

impl Turn {
    /// Returns whichever is over first.
    pub(super) fn sooner(self, other: Self) -> Self {
        match (self, other) {
            (Self::Again, _) | (_, Self::Again) => Self::Again,
            (Self::Wait(None), wait) | (wait, Self::Wait(None)) => wait,
            (Self::Wait(Some(one)), Self::Wait(Some(other))) => Self::Wait(Some(one.min(other))),
        }
    }
}

/// A connection that has been accepted. Dropping it removes it from the connection table.
pub(in crate::commands::relay) struct Connection {
    listener: Arc<RelayListener>,
    context: Arc<WorkerContext>,
    state: Arc<ConnectionState>,
    /// Its key in the connection table.
    key: usize,
    at: SystemTime,
    began: Instant,
    /// The client, as the PROXY header says if there is one.
    client_address: Address,
    client: Side,
    stage: Stage,
    /// The target that was connected to.
    target_connection: Option<TargetConnection>,
    bytes: RelayedBytes,
    /// Its place among the connections; see `--max-connections`. The last field, so that the
    /// sockets are closed before another connection takes the place.
    _permit: OwnedSemaphorePermit,
}

enum Stage {
    /// The PROXY header is being received.
    Header(Box<HeaderReader>),
    Connecting(Box<Connecting>),
    Relaying {
        target: Side,
        relaying: Box<Relaying>,
    },
    /// The connection has failed, and what was sent to the peers is being delivered.
    Delivering {
        target: Side,
        end: End,
        until: Instant,
    },
    Ended,
}

/// Closes a connection that is one too many, so that the client finds it reset.
pub(in crate::commands::relay) fn refuse(accepted: Accepted, context: &WorkerContext) {
    context.stats.count_accepted();
    context.stats.count_ended(EndKind::Refused);
    if let Some(log) = &context.log {
        log.write(&LogRecord {
            at: SystemTime::now(),
            took: Duration::ZERO,
            client: &accepted.peer,
            listener: &accepted.listener.name,
            target: None,
            bytes: &RelayedBytes::default(),
            end: &End::Refused,
        });
    }
    accepted.socket.reset();
}

impl Connection {
    /// Takes a connection that was accepted. `waker` has [`advance`](Self::advance) called.
    pub(in crate::commands::relay) fn new(
        accepted: Accepted,
        permit: OwnedSemaphorePermit,
        context: &Arc<WorkerContext>,
        waker: &Waker,
        now: Instant,
    ) -> Self {
        let Accepted {
            socket,
            peer,
            listener,
        } = accepted;
        context.stats.count_accepted();
        let state = Arc::new(ConnectionState::new(listener.idle_limits()));
        state.commands().register_waker(waker);
        let key = context.stats.connections.insert(Arc::clone(&state));
        let deadline = listener.config.connect_timeout.map(|limit| now + limit);
        let stage = match listener.config.accept_proxy {
            Some(versions) => Stage::Header(Box::new(HeaderReader::new(versions, deadline))),
            None => connecting(&listener, &socket, &peer, None, Vec::new()),
        };
        Self {
            context: Arc::clone(context),
            state,
            key,
            _permit: permit,
            at: SystemTime::now(),
            began: now,
            client_address: peer,
            client: Side::new(socket),
            stage,
            target_connection: None,
            bytes: RelayedBytes::default(),
            listener,
        }
    }

    /// Returns the client's socket.
    pub(in crate::commands::relay) fn client(&self) -> &Socket {
        &self.client.socket
    }

    /// Records an event of one of the sockets.
    pub(in crate::commands::relay) fn record(&mut self, which: Peer, flags: EventFlags) {
        let side = match (which, &mut self.stage) {
            (Peer::Client, _) => Some(&mut self.client),
            (Peer::Target, Stage::Header(_) | Stage::Ended) => None,
            (Peer::Target, Stage::Connecting(connecting)) => connecting.side(),
            (Peer::Target, Stage::Relaying { target, .. } | Stage::Delivering { target, .. }) => {
                Some(target)
            }
        };
        if let Some(side) = side {
            side.record(flags);
        }
    }

    /// Does everything that can be done without waiting. `watch` has epoll watch a socket to the
    /// target. Once it returns `Break`, the connection has ended, and is to be dropped.
    pub(in crate::commands::relay) fn advance(
        &mut self,
        watch: &dyn Fn(&Socket) -> io::Result<()>,
        now: Instant,
    ) -> ControlFlow<(), Turn> {
        if self.state.commands().command() == ConnectionCommand::Abort {
            self.abort(now);
            return ControlFlow::Break(());
        }
        loop {
            let turn = match &mut self.stage {
                Stage::Header(reader) => match reader.advance(&mut self.client, now) {
                    Ok(None) => Turn::Wait(reader.deadline()),
                    Ok(Some(received)) => {
                        if let Some(source) = received.header.source() {
                            self.client_address = Address::Tcp(source);
                        }
                        self.stage = connecting(
                            &self.listener,
                            &self.client.socket,
                            &self.client_address,
                            Some(received.header),
                            received.rest,
                        );
                        continue;
                    }
                    Err(end) => return self.fail(&end, now),
                },
                Stage::Connecting(connecting) => {
                    let (listener, context) = (&self.listener, &self.context);
                    match connecting.advance(listener, context, watch, now) {
                        Ok(ControlFlow::Continue(turn)) => turn,
                        Ok(ControlFlow::Break(established)) => {
                            self.relay_to(established, now);
                            continue;
                        }
                        Err(end) => return self.fail(&end, now),
                    }
                }
                Stage::Relaying { target, relaying } => {
                    let (client, stats) = (&mut self.client, &self.context.stats);
                    match relaying.advance(client, target, &self.state, stats, now) {
                        ControlFlow::Continue(turn) => turn,
                        // Both peers have ended their streams and received all bytes, or will.
                        ControlFlow::Break(End::Finished) => {
                            self.bytes = relaying.bytes();
                            self.log_end(&End::Finished, now);
                            return ControlFlow::Break(());
                        }
                        ControlFlow::Break(end) => {
                            self.deliver(end, now);
                            continue;
                        }
                    }
                }
                Stage::Delivering { target, end, until } => {
                    let is_delivered =
                        self.client.socket.is_delivered() && target.socket.is_delivered();
                    if is_delivered || now >= *until {
                        let end = std::mem::replace(end, End::Finished);
                        return self.fail(&end, now);
                    }
                    Turn::Wait(Some(now + DELIVERY_INTERVAL))
                }
                Stage::Ended => return ControlFlow::Break(()),
            };
            return ControlFlow::Continue(turn);
        }
    }

    fn relay_to(&mut self, established: Established, now: Instant) {
        let Established {
            target,
            connection,
            prefix,
        } = established;
        let config = &self.listener.config;
        let relaying = Relaying::new(config.mechanism, config.limit_rate, prefix, now);
        self.target_connection = Some(connection);
        self.state.enter(Phase::Relaying);
        self.stage = Stage::Relaying {
            target,
            relaying: Box::new(relaying),
        };
    }

    /// Ends the connection because epoll cannot watch the client's socket.
    pub(in crate::commands::relay) fn fail_to_watch(mut self, error: io::Error, now: Instant) {
        let _ = self.fail(&End::Local(error), now);
    }

    /// Waits until the peers have received what was sent to them, and then fails.
    fn deliver(&mut self, end: End, now: Instant) {
        let stage = std::mem::replace(&mut self.stage, Stage::Ended);
        if let Stage::Relaying { target, relaying } = stage {
            self.bytes = relaying.bytes();
            self.stage = Stage::Delivering {
                target,
                end,
                until: now + MAX_DELIVERY_TIME,
            };
        }
    }

    /// Carries out the command to close now.
    fn abort(&mut self, now: Instant) {
        let end = match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::Relaying { target, relaying } => {
                self.bytes = relaying.bytes();
                target.socket.reset();
                match (self.state.is_expired(), self.state.phase()) {
                    (true, Phase::HalfClosed) => End::HalfCloseTimeout,
                    (true, _) => End::IdleTimeout,
                    (false, _) => End::Stopped,
                }
            }
            Stage::Delivering { target, end, .. } => {
                target.socket.reset();
                end
            }
            Stage::Header(_) | Stage::Connecting(_) | Stage::Ended => End::Stopped,
        };
        let _ = self.fail(&end, now);
    }

    /// Ends the connection so that both peers find it reset.
    fn fail(&mut self, end: &End, now: Instant) -> ControlFlow<(), Turn> {
        if let Stage::Delivering { target, .. } = &self.stage {
            target.socket.reset_when_closed();
        }
        self.client.socket.reset_when_closed();
        self.log_end(end, now);
        ControlFlow::Break(())
    }

    fn log_end(&mut self, end: &End, now: Instant) {
        self.context.stats.count_ended(end.kind());
        if let Some(log) = &self.context.log {
            let target = self
                .target_connection
                .as_ref()
                .map(|connection| connection.target().address().to_string());
            log.write(&LogRecord {
                at: self.at,
                took: now.saturating_duration_since(self.began),
                client: &self.client_address,
                listener: &self.listener.name,
                target: target.as_deref(),
                bytes: &self.bytes,
                end,
            });
        }
    }
}

/// Returns the stage of connecting to a target. `original` is the client's PROXY header, and `rest`
/// are the bytes that were received after it.
fn connecting(
    listener: &RelayListener,
    client: &Socket,
    client_address: &Address,
    original: Option<Header>,
    mut rest: Vec<u8>,
) -> Stage {
    let address = match client_address {
        Address::Tcp(address) => Some(*address),
        _ => None,
    };
    let mut prefix = Vec::new();
    if let Some(version) = listener.config.send_proxy {
        let own = || Header::of_connection(address, client.local_address());
        // A header that says what the original connection was is passed on.
        let header = original.filter(|header| header.source().is_some());
        prefix = header.unwrap_or_else(own).encode(version);
    }
    prefix.append(&mut rest);
    let ip = address.map(|address: SocketAddr| address.ip());
    Stage::Connecting(Box::new(Connecting::new(listener, ip, prefix)))
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.context.stats.connections.remove(self.key);
    }
}
