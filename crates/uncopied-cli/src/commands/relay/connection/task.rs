//! The task of one connection.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::OwnedSemaphorePermit;
use uncopied_http::Address;

use crate::commands::relay::listener::{Accepted, RelayListener};
use crate::commands::relay::log::LogRecord;
use crate::commands::relay::stats::{RelayedBytes, WorkerStats};
use crate::commands::relay::target::Connection as TargetConnection;
use crate::server::access_log::AccessLog;
use crate::server::connections::{Commanded as _, ConnectionCommand};

use super::end::{End, EndKind};
use super::establish::{Established, establish};
use super::relaying::Relaying;
use super::socket::Socket;
use super::state::{ConnectionState, Phase};

/// What all connections of a worker have in common.
pub(in crate::commands::relay) struct WorkerContext {
    pub(in crate::commands::relay) stats: Arc<WorkerStats>,
    pub(in crate::commands::relay) log: Option<Arc<AccessLog>>,
}

/// A connection that has been accepted. Dropping it removes it from the connection table.
struct Connection {
    listener: Arc<RelayListener>,
    context: Arc<WorkerContext>,
    state: Arc<ConnectionState>,
    key: usize,
    /// Its place among the connections; see `--max-connections`.
    _permit: OwnedSemaphorePermit,
    at: SystemTime,
    began: Instant,
}

/// What is known about a connection when it ends.
pub(super) struct Outcome {
    /// The client, as the PROXY header says if there is one.
    pub(super) client: Address,
    /// The target that was connected to.
    pub(super) target: Option<TargetConnection>,
    pub(super) bytes: RelayedBytes,
}

/// Starts a task that relays a connection.
pub(in crate::commands::relay) fn spawn(
    accepted: Accepted,
    permit: OwnedSemaphorePermit,
    context: &Arc<WorkerContext>,
) {
    context.stats.count_accepted();
    let state = Arc::new(ConnectionState::new(accepted.listener.idle_limits()));
    let key = context.stats.connections.insert(Arc::clone(&state));
    let connection = Connection {
        listener: accepted.listener,
        context: Arc::clone(context),
        state,
        key,
        _permit: permit,
        at: SystemTime::now(),
        began: Instant::now(),
    };
    tokio::spawn(connection.run(accepted.socket, accepted.peer));
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
    async fn run(self, client: Socket, peer: Address) {
        let mut outcome = Outcome {
            client: peer,
            target: None,
            bytes: RelayedBytes::default(),
        };
        let end = self.serve(client, &mut outcome).await;
        self.context.stats.count_ended(end.kind());
        if let Some(log) = &self.context.log {
            let target = outcome
                .target
                .map(|connection| connection.target().address().to_string());
            log.write(&LogRecord {
                at: self.at,
                took: self.began.elapsed(),
                client: &outcome.client,
                listener: &self.listener.name,
                target: target.as_deref(),
                bytes: &outcome.bytes,
                end: &end,
            });
        }
    }

    async fn serve(&self, client: Socket, outcome: &mut Outcome) -> End {
        let establishing = establish(&client, &self.listener, &self.context, outcome);
        // In a box, because a connection spends most of its time without it.
        let established = match self.unless_aborted(Box::pin(establishing)).await {
            Some(Ok(established)) => established,
            Some(Err(end)) => {
                client.reset();
                return end;
            }
            None => {
                client.reset();
                return End::Stopped;
            }
        };
        self.state.enter(Phase::Relaying);
        let Established { target, prefix } = established;
        let end = self.relay(&client, &target, prefix, outcome).await;
        match &end {
            // Both peers have ended their streams and received all bytes, or will.
            End::Finished => {}
            End::Failed(_) => {
                let delivered = async {
                    client.wait_until_delivered().await;
                    target.wait_until_delivered().await;
                };
                self.unless_aborted(Box::pin(delivered)).await;
                client.reset();
                target.reset();
            }
            _ => {
                client.reset();
                target.reset();
            }
        }
        end
    }

    async fn relay(
        &self,
        client: &Socket,
        target: &Socket,
        prefix: Vec<u8>,
        outcome: &mut Outcome,
    ) -> End {
        let config = &self.listener.config;
        let mut relaying = Relaying::new(config.mechanism, config.limit_rate, prefix);
        let (state, stats) = (&self.state, &self.context.stats);
        let end = poll_fn(|cx| relaying.poll(cx, client, target, state, stats));
        let end = self.unless_aborted(end).await;
        outcome.bytes = relaying.bytes();
        end.unwrap_or_else(|| match (state.is_expired(), state.phase()) {
            (true, Phase::HalfClosed) => End::HalfCloseTimeout,
            (true, _) => End::IdleTimeout,
            (false, _) => End::Stopped,
        })
    }

    /// Runs a future until it ends. Returns `None` if the connection is told to abort before that.
    async fn unless_aborted<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let commands = self.state.commands();
        let mut registered: Option<Waker> = None;
        let mut future = pin!(future);
        poll_fn(|cx| {
            // The waker rarely changes, so this usually costs only a comparison.
            if !registered
                .as_ref()
                .is_some_and(|waker| waker.will_wake(cx.waker()))
            {
                commands.register_waker(cx.waker());
                registered = Some(cx.waker().clone());
            }
            match commands.command() {
                ConnectionCommand::Abort => Poll::Ready(None),
                _ => future.as_mut().poll(cx).map(Some),
            }
        })
        .await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.context.stats.connections.remove(self.key);
    }
}
