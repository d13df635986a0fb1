//! A worker: a thread with an event loop, its listeners and its connections.
//!
//! The event loop is the worker's own, and not tokio's: epoll in edge-triggered mode, which also
//! tells of urgent data, and connections that are state machines. For small messages, this is what
//! a relay's time goes into (decision 29).

mod inbox;
mod poller;
mod timers;

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use slab::Slab;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::error::{Error, kernel_text};
use crate::server::access_log::AccessLog;
use crate::server::listening::{ACCEPT_BACKOFF, is_per_connection, report_accept_error};
use crate::server::warning::{WarningKind, warn_limited};
use crate::server::worker::{WorkerExit, start_worker};

use super::connection::{Connection, Peer, Turn, WorkerContext, refuse};
use super::listener::{Accepted, OpenListener, WorkerListener};
use super::stats::WorkerStats;

use inbox::Inbox;
use poller::{Events, Poller, Token};
use timers::Timers;

/// The maximum number of connections that are accepted from the queue of a listener before it is
/// closed. As many as a queue may hold.
const MAX_QUEUED: usize = 4096;

/// The maximum number of connections that are accepted at a time, so that those that are open have
/// their turn.
const MAX_ACCEPTED: usize = 16;

/// What all workers share. Each worker has a clone.
#[derive(Clone)]
pub(super) struct WorkerSetup {
    pub(super) permits: Arc<Semaphore>,
    pub(super) max_connections: usize,
    pub(super) log: Option<Arc<AccessLog>>,
    /// The current listeners.
    pub(super) listeners: watch::Receiver<Arc<[OpenListener]>>,
    /// Becomes true when the workers must stop accepting connections.
    pub(super) stopped: watch::Receiver<bool>,
}

/// Starts a worker thread. When the thread ends, it reports its exit to `exit_sender`. Must be
/// called within the control thread's runtime.
pub(super) fn start(
    number: usize,
    setup: &WorkerSetup,
    exit_sender: &mpsc::UnboundedSender<WorkerExit>,
) -> Result<Arc<WorkerStats>, Error> {
    let inbox = Inbox::new().map_err(Error::setup("create an eventfd"))?;
    let stats = Arc::new(WorkerStats::default());
    let context = Arc::new(WorkerContext {
        stats: Arc::clone(&stats),
        log: setup.log.clone(),
    });
    let worker = Worker::new(setup.clone(), Arc::clone(&inbox), context)?;
    start_worker(format!("relay-{number}"), exit_sender, move || worker.run())?;
    tokio::spawn(announce_news(setup.clone(), inbox));
    Ok(stats)
}

/// Tells a worker whenever the listeners change, and when it must stop. Ends then, or with the
/// control thread.
async fn announce_news(mut setup: WorkerSetup, inbox: Arc<Inbox>) {
    loop {
        let is_over = tokio::select! {
            changed = setup.listeners.changed() => changed.is_err(),
            changed = setup.stopped.changed() => changed.is_err() || *setup.stopped.borrow(),
        };
        inbox.announce_news();
        if is_over {
            return;
        }
    }
}

/// A worker's event loop.
struct Worker {
    setup: WorkerSetup,
    context: Arc<WorkerContext>,
    inbox: Arc<Inbox>,
    poller: Poller,
    listeners: Vec<WorkerListener>,
    /// When accepting is tried again after an error. The listeners are not watched until then.
    accept_paused_until: Option<Instant>,
    connections: Slab<Box<Entry>>,
    timers: Timers,
    /// The connections that are to have their turn. None is in it twice.
    ready: Vec<usize>,
    is_stopping: bool,
}

/// A connection in the event loop.
struct Entry {
    connection: Connection,
    timer: Option<Instant>,
    /// Whether it is in the list of those that are to have their turn.
    is_ready: bool,
}

impl Worker {
    fn new(
        mut setup: WorkerSetup,
        inbox: Arc<Inbox>,
        context: Arc<WorkerContext>,
    ) -> Result<Self, Error> {
        let poller = Poller::new().map_err(Error::setup("create an epoll instance"))?;
        poller
            .watch_readable(&*inbox, Token::Inbox)
            .map_err(Error::setup("watch an eventfd"))?;
        let open = Arc::clone(&setup.listeners.borrow_and_update());
        let worker = Self {
            listeners: duplicate(&open).map_err(Error::setup("duplicate a listening socket"))?,
            setup,
            context,
            inbox,
            poller,
            accept_paused_until: None,
            connections: Slab::new(),
            timers: Timers::default(),
            ready: Vec::new(),
            is_stopping: false,
        };
        worker
            .watch_listeners()
            .map_err(Error::setup("watch the listening socket"))?;
        Ok(worker)
    }

    /// Runs until the worker is told to stop and all its connections have ended.
    fn run(mut self) {
        let mut events = Events::new();
        while !self.is_stopping || !self.connections.is_empty() {
            let until = match self.ready.is_empty() {
                true => [self.timers.next(), self.accept_paused_until]
                    .into_iter()
                    .flatten()
                    .min(),
                false => Some(Instant::now()),
            };
            self.poller
                .wait(&mut events, until)
                .unwrap_or_else(|error| panic!("epoll_wait: {error}"));
            self.turn(&events, Instant::now());
        }
    }

    /// Handles the events of a wait, and gives every connection that they are about its
    /// turn. The events of all sockets are recorded first, so that a connection with events of both
    /// has one turn.
    fn turn(&mut self, events: &Events, now: Instant) {
        let Self {
            connections, ready, ..
        } = self;
        let mut has_messages = false;
        let mut waiting = Vec::new();
        for (token, flags) in events.iter() {
            match token {
                Token::Inbox => has_messages = true,
                Token::Listener(number) => waiting.push(number),
                Token::Connection(key, peer) => {
                    // Descriptors of connections that have ended are closed, so the key is valid.
                    if let Some(entry) = connections.get_mut(key) {
                        entry.connection.record(peer, flags);
                        make_ready(entry, key, ready);
                    }
                }
            }
        }
        if has_messages {
            self.take_messages(now);
        }
        let (connections, ready) = (&mut self.connections, &mut self.ready);
        self.timers.for_each_due(now, |key| {
            if let Some(entry) = connections.get_mut(key) {
                make_ready(entry, key, ready);
            }
        });
        let mut turn = std::mem::take(&mut self.ready);
        for key in turn.drain(..) {
            self.advance(key, now);
        }
        if self.ready.is_empty() {
            // Keep the memory.
            self.ready = turn;
        }
        let is_over = |until: Instant| now >= until;
        if self.accept_paused_until.is_some_and(is_over) {
            self.accept_paused_until = None;
            if let Err(error) = self.watch_listeners() {
                self.pause_accepting(&error, now);
            }
        }
        for number in waiting {
            self.accept(number, MAX_ACCEPTED, now);
        }
    }

    /// Gives a connection its turn.
    fn advance(&mut self, key: usize, now: Instant) {
        let Some(entry) = self.connections.get_mut(key) else {
            return;
        };
        entry.is_ready = false;
        let poller = &self.poller;
        let watch = |socket: &_| poller.watch_socket(socket, key, Peer::Target);
        match entry.connection.advance(&watch, now) {
            ControlFlow::Continue(turn) => {
                let time = match turn {
                    Turn::Wait(time) => time,
                    Turn::Again => {
                        make_ready(entry, key, &mut self.ready);
                        None
                    }
                };
                self.timers.replace(key, entry.timer, time);
                entry.timer = time;
            }
            ControlFlow::Break(()) => {
                self.timers.replace(key, entry.timer, None);
                self.connections.remove(key);
                if self.connections.is_empty() {
                    // Free the memory that a busy period has left allocated.
                    self.connections.shrink_to_fit();
                }
            }
        }
    }

    fn take_messages(&mut self, now: Instant) {
        let messages = self.inbox.take();
        for key in messages.connections {
            if let Some(entry) = self.connections.get_mut(key) {
                make_ready(entry, key, &mut self.ready);
            }
        }
        if messages.has_news {
            self.take_news(now);
        }
    }

    /// Stops accepting, or goes over to new listeners.
    fn take_news(&mut self, now: Instant) {
        // The channel is closed if the control thread has ended, which is also a reason to stop.
        let must_stop = *self.setup.stopped.borrow() || self.setup.stopped.has_changed().is_err();
        let has_changed = self.setup.listeners.has_changed().unwrap_or(false);
        let new = match (must_stop, has_changed) {
            (false, false) => return,
            (true, _) => {
                self.is_stopping = true;
                Vec::new()
            }
            (false, true) => {
                let open = Arc::clone(&self.setup.listeners.borrow_and_update());
                match duplicate(&open) {
                    Ok(new) => new,
                    Err(error) => return warn_of_old_listeners(&error),
                }
            }
        };
        // Closing a listener resets the connections that wait in its queue.
        for number in 0..self.listeners.len() {
            self.accept(number, MAX_QUEUED, now);
        }
        self.forget_listeners();
        self.listeners = new;
        self.accept_paused_until = None;
        if let Err(error) = self.watch_listeners() {
            self.pause_accepting(&error, now);
        }
    }

    fn watch_listeners(&self) -> io::Result<()> {
        for (number, listener) in self.listeners.iter().enumerate() {
            self.poller
                .watch_readable(listener, Token::Listener(number))?;
        }
        Ok(())
    }

    fn forget_listeners(&self) {
        for listener in &self.listeners {
            self.poller.forget(listener);
        }
    }

    /// Accepts the connections that wait in the queue of a listener, at most `limit`.
    fn accept(&mut self, number: usize, limit: usize, now: Instant) {
        for accepted in 0..limit {
            // The listeners may have been replaced since the event.
            let Some(listener) = self.listeners.get(number) else {
                return;
            };
            match listener.accept() {
                Ok(accepted) => self.start_connection(accepted, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if is_per_connection(&error) => {}
                // The kernel looks for a free descriptor before it looks into the queue, so it may
                // be that no connection waits. If one does, epoll reports the listener again.
                Err(_) if accepted > 0 => return,
                Err(error) => return self.pause_accepting(&error, now),
            }
        }
    }

    /// Accepts no connection for a while, because that has failed.
    fn pause_accepting(&mut self, error: &io::Error, now: Instant) {
        report_accept_error(error);
        self.forget_listeners();
        self.accept_paused_until = Some(now + ACCEPT_BACKOFF);
    }

    fn start_connection(&mut self, accepted: Accepted, now: Instant) {
        let Ok(permit) = Arc::clone(&self.setup.permits).try_acquire_owned() else {
            warn_limited(
                WarningKind::TableFull,
                &format_args!(
                    "all {} connections are in use, and new ones are refused; raise \
                     --max-connections",
                    self.setup.max_connections
                ),
            );
            return refuse(accepted, &self.context);
        };
        let entry = self.connections.vacant_entry();
        let key = entry.key();
        let waker = self.inbox.waker_for(key);
        let connection = Connection::new(accepted, permit, &self.context, &waker, now);
        let watched = self
            .poller
            .watch_socket(connection.client(), key, Peer::Client);
        entry.insert(Box::new(Entry {
            connection,
            timer: None,
            is_ready: false,
        }));
        match watched {
            Ok(()) => self.advance(key, now),
            Err(error) => {
                self.connections
                    .remove(key)
                    .connection
                    .fail_to_watch(error, now);
            }
        }
    }
}

fn make_ready(entry: &mut Entry, key: usize, ready: &mut Vec<usize>) {
    if !entry.is_ready {
        entry.is_ready = true;
        ready.push(key);
    }
}

fn duplicate(listeners: &[OpenListener]) -> io::Result<Vec<WorkerListener>> {
    listeners.iter().map(OpenListener::duplicate).collect()
}

fn warn_of_old_listeners(error: &io::Error) {
    warn_limited(
        WarningKind::Accept,
        &format_args!(
            "cannot watch the new listening sockets: {}; one thread goes on with the old ones",
            kernel_text(error)
        ),
    );
}
