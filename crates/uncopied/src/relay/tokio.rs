//! Both directions between two sockets of tokio.

use std::future::poll_fn;
use std::task::{Context, Poll};

use super::{RelayEnd, RelayError, RelayOptions, Relayed};
use crate::driver::tokio::relay::{DuplexSocket, poll};
use crate::error::Error;
use crate::transfer::RelayTransfer;

/// Moves bytes between two sockets of tokio, in both directions, until both streams have ended.
/// When one ends, the other socket is shut down for writing.
///
/// The arguments may be `&mut`, as those of `tokio::io::copy_bidirectional`, or shared references.
///
/// ```
/// # async fn relay(client: tokio::net::TcpStream) -> Result<(), Box<dyn std::error::Error>> {
/// let server = tokio::net::TcpStream::connect("10.0.0.7:5432").await?;
/// let relayed = uncopied::tokio::copy_bidirectional(&client, &server).await?;
/// println!("to the server: {}; back: {}", relayed.a_to_b, relayed.b_to_a);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`RelayError`] if one of the sockets fails. It says what was moved in both directions. The
/// sockets are left as they are.
///
/// # Cancellation
///
/// Dropping the future loses the bytes that were taken from one socket and not yet accepted by the
/// other. If you may want to continue, keep a [`Relay`].
pub async fn copy_bidirectional(
    a: &impl DuplexSocket,
    b: &impl DuplexSocket,
) -> Result<Relayed, RelayError> {
    let mut relay = Relay::new(&RelayOptions::new());
    relay.run(a, b).await?;
    Ok(relay.relayed())
}

/// The state of moving bytes between two sockets of tokio, in both directions.
///
/// It owns the bytes that were taken from one socket and not yet accepted by the other. So a future
/// of [`run`](Self::run) can be dropped, and another one continues from the same byte. While there
/// is nothing to move, a `Relay` has no pipe and no buffer.
#[derive(Debug)]
pub struct Relay {
    to_b: OneWay,
    to_a: OneWay,
    max_bytes_per_poll: u64,
}

/// One of the two directions.
#[derive(Debug)]
struct OneWay {
    transfer: RelayTransfer,
    /// Whether the end of the stream was passed on.
    has_ended: bool,
}

impl Relay {
    /// Prepares to move bytes. Nothing is received yet.
    #[must_use]
    pub fn new(options: &RelayOptions) -> Self {
        let [to_b, to_a] = options.transfers().map(|transfer| OneWay {
            transfer,
            has_ended: false,
        });
        Self {
            to_b,
            to_a,
            max_bytes_per_poll: options.bytes_per_poll(),
        }
    }

    /// Moves bytes until both streams have ended. Every call must be given the same sockets.
    ///
    /// # Errors
    ///
    /// [`RelayError`] if one of the sockets fails.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, no byte is lost: call `run` again.
    pub async fn run(
        &mut self,
        a: &impl DuplexSocket,
        b: &impl DuplexSocket,
    ) -> Result<(), RelayError> {
        poll_fn(|context| self.poll(context, a, b)).await
    }

    /// Moves bytes until both streams have ended, or neither direction can move any. In each
    /// direction, moves at most about as many bytes as the
    /// [options](RelayOptions::max_bytes_per_poll) say, and then wakes the task, so that other
    /// tasks can run.
    ///
    /// # Errors
    ///
    /// [`RelayError`] if one of the sockets fails.
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        a: &impl DuplexSocket,
        b: &impl DuplexSocket,
    ) -> Poll<Result<(), RelayError>> {
        let to_b = self.poll_a_to_b(context, a, b)?;
        let to_a = self.poll_b_to_a(context, a, b)?;
        match to_b.is_ready() && to_a.is_ready() {
            true => Poll::Ready(Ok(())),
            false => Poll::Pending,
        }
    }

    /// Does what [`poll`](Self::poll) does for the stream from the first socket to the second. It
    /// is ready once that stream has ended. For programs that limit the rate of each stream, or
    /// that let one go on after the other has failed.
    ///
    /// # Errors
    ///
    /// As for [`poll`](Self::poll).
    pub fn poll_a_to_b(
        &mut self,
        context: &mut Context<'_>,
        a: &impl DuplexSocket,
        b: &impl DuplexSocket,
    ) -> Poll<Result<(), RelayError>> {
        let polled = self.to_b.poll(context, a, b, self.max_bytes_per_poll);
        polled.map_err(|error| RelayError::new(RelayEnd::A, error, self.relayed()))
    }

    /// Does what [`poll`](Self::poll) does for the stream from the second socket to the first. It
    /// is ready once that stream has ended.
    ///
    /// # Errors
    ///
    /// As for [`poll`](Self::poll).
    pub fn poll_b_to_a(
        &mut self,
        context: &mut Context<'_>,
        a: &impl DuplexSocket,
        b: &impl DuplexSocket,
    ) -> Poll<Result<(), RelayError>> {
        let polled = self.to_a.poll(context, b, a, self.max_bytes_per_poll);
        polled.map_err(|error| RelayError::new(RelayEnd::B, error, self.relayed()))
    }

    /// Returns the transfer from the first socket to the second, with its report.
    #[must_use]
    pub fn a_to_b(&self) -> &RelayTransfer {
        &self.to_b.transfer
    }

    /// Returns the transfer from the second socket to the first, with its report.
    #[must_use]
    pub fn b_to_a(&self) -> &RelayTransfer {
        &self.to_a.transfer
    }

    /// Returns what was moved so far.
    #[must_use]
    pub fn relayed(&self) -> Relayed {
        Relayed {
            a_to_b: self.a_to_b().report().clone(),
            b_to_a: self.b_to_a().report().clone(),
        }
    }
}

impl OneWay {
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        source: &impl DuplexSocket,
        sink: &impl DuplexSocket,
        max_bytes: u64,
    ) -> Poll<Result<(), Error>> {
        if self.has_ended {
            return Poll::Ready(Ok(()));
        }
        std::task::ready!(poll(&mut self.transfer, context, source, sink, max_bytes))?;
        self.transfer.pass_on_end(sink)?;
        self.has_ended = true;
        Poll::Ready(Ok(()))
    }
}
