//! Waiting on several listeners at once, and what a failed accept means.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::sync::Semaphore;
use uncopied_http::{Address, Listener, Stream};

use crate::error::kernel_text;
use crate::output::say;

/// How long accepting rests when the machine has no descriptor or memory for a connection.
const BACK_OFF: Duration = Duration::from_millis(100);

/// How long nothing more is said about it.
const QUIET: Duration = Duration::from_secs(60);

type Accepted = io::Result<(Stream, Address)>;
type Pending = Pin<Box<dyn Future<Output = (Listener, Accepted)> + Send>>;

/// The listeners of one event loop, each with its accept under way.
pub(crate) struct Listeners {
    pending: Vec<Pending>,
    /// Whose turn it is to be asked first: a busy listener does not starve the next.
    turn: usize,
}

impl Listeners {
    pub(crate) fn new(listeners: impl IntoIterator<Item = Listener>) -> Self {
        Self {
            pending: listeners.into_iter().map(accept_one).collect(),
            turn: 0,
        }
    }

    /// The next connection of any listener.
    async fn next(&mut self) -> Accepted {
        poll_fn(|cx| {
            let count = self.pending.len();
            for index in (0..count).map(|step| (self.turn + step) % count) {
                if let Poll::Ready((listener, accepted)) = self.pending[index].as_mut().poll(cx) {
                    self.pending[index] = accept_one(listener);
                    self.turn = (index + 1) % count;
                    return Poll::Ready(accepted);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Accepts connections for ever, each with a permit taken from `permits`: with none left, the
    /// rest waits in the kernel's queue. `start` gives the permit back when its connection ends.
    ///
    /// The permit comes before the accept, and one accept waits on all listeners: so a permit that
    /// is held while nothing arrives on one listener never keeps another one waiting.
    pub(crate) async fn accept_all(
        mut self,
        permits: &Semaphore,
        mut start: impl FnMut(Stream, Address),
    ) -> Infallible {
        let mut complained: Option<Instant> = None;
        loop {
            let permit = permits.acquire().await;
            match self.next().await {
                Ok((stream, address)) => {
                    if let Ok(permit) = permit {
                        permit.forget();
                    }
                    start(stream, address);
                }
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) => {
                    if complained.is_none_or(|at| at.elapsed() > QUIET) {
                        complained = Some(Instant::now());
                        complain(&error);
                    }
                    tokio::time::sleep(BACK_OFF).await;
                }
            }
        }
    }
}

fn complain(error: &io::Error) {
    let hint = match Errno::from_io_error(error) {
        Some(Errno::MFILE) => "; raise the limit (ulimit -n) or lower --max-connections",
        _ => "",
    };
    let text = kernel_text(error);
    say(&format_args!(
        "cannot accept a connection for now: {text}{hint}"
    ));
}

fn accept_one(listener: Listener) -> Pending {
    Box::pin(async move {
        let accepted = listener.accept().await;
        (listener, accepted)
    })
}

/// Whether the error is one of a connection that went away before it was accepted (accept(2): these
/// are network errors to be treated like EAGAIN), so that the next one may be fine.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::CONNABORTED
                | Errno::CONNRESET
                | Errno::INTR
                | Errno::PROTO
                | Errno::PERM
                | Errno::NETDOWN
                | Errno::NOPROTOOPT
                | Errno::HOSTDOWN
                | Errno::NONET
                | Errno::HOSTUNREACH
                | Errno::OPNOTSUPP
                | Errno::NETUNREACH
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_of_one_connection_are_passed_over() {
        let from = |errno: Errno| io::Error::from(errno);
        for errno in [
            Errno::CONNABORTED,
            Errno::PERM,
            Errno::PROTO,
            Errno::NETUNREACH,
        ] {
            assert!(concerns_one_connection(&from(errno)), "{errno:?}");
        }
        for errno in [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOBUFS,
            Errno::NOMEM,
            Errno::BADF,
        ] {
            assert!(!concerns_one_connection(&from(errno)), "{errno:?}");
        }
    }
}
