//! What serves one connection, put together.

use std::sync::Arc;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::{Semaphore, watch};
use uncopied_http::{Address, ServeFiles, Stream};

use crate::commands::serve::access_log::{AccessLog, Ledger, LogObserver, Logged};
use crate::commands::serve::connection::{Answers, Guarded, Place, Repeats, Seat, Serving, Shared};

/// What every thread is given.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) files: ServeFiles,
    pub(crate) http: Arc<http1::Builder>,
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) log: Option<Arc<AccessLog>>,
    /// Turns true when no more connections are to be accepted.
    pub(crate) stopped: watch::Receiver<bool>,
}

impl Plan {
    /// Serves one connection in a task of its own.
    pub(super) fn serve(&self, mut stream: Stream, from: Address, thread: &Arc<Shared>) {
        let is_tcp = matches!(from, Address::Tcp(_));
        let seat = Seat::new(stream.activity(), is_tcp);
        let place = Place::take(seat, thread, &self.permits);
        let answers = Answers::new(
            self.files.clone(),
            Arc::clone(&place.seat),
            Arc::clone(thread),
        );
        let ledger = self
            .log
            .as_ref()
            .map(|log| Ledger::new(Arc::clone(log), from));
        // The log's lines tell what hyper has read.
        let counts = ledger.is_none().then(|| Arc::clone(thread));
        let repeats = Repeats::new(stream, Arc::clone(&place.seat), counts);
        let http = Arc::clone(&self.http);
        let state = Arc::clone(&place.seat);
        match ledger {
            None => {
                let io = TokioIo::new(Guarded::new(repeats, state, ()));
                tokio::spawn(Serving::new(io, answers, http, (), place));
            }
            Some(ledger) => {
                let logged = Logged::new(answers, Arc::clone(&ledger));
                let observer = LogObserver::new(ledger);
                let io = TokioIo::new(Guarded::new(repeats, state, observer.clone()));
                tokio::spawn(Serving::new(io, logged, http, observer, place));
            }
        }
    }
}
