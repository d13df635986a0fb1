//! The listener that the contenders' processes connect to.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};

use super::tcp;
use super::wait::{STALL_LIMIT, wait_readable};
use crate::error::{Context, Error};
use crate::interrupt;
use crate::process::PinnedChild;

/// The address to bind a listener to.
pub(crate) const ANY_PORT: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// A listener on a free port of 127.0.0.1.
pub(crate) struct Listener {
    listener: TcpListener,
    congestion: String,
}

impl Listener {
    /// Takes a listener that is bound, and sets the congestion control of the
    /// connections that it will accept.
    pub(crate) fn new(bound: io::Result<TcpListener>, congestion: &str) -> Result<Self, Error> {
        let listener = bound
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .context(|| "cannot listen on 127.0.0.1".into())?;
        tcp::set_congestion(&listener, congestion)?;
        Ok(Self {
            listener,
            congestion: congestion.to_owned(),
        })
    }

    /// Returns the port on 127.0.0.1.
    pub(crate) fn port(&self) -> Result<u16, Error> {
        let address = self.listener.local_addr();
        let address = address.context(|| "cannot get the listener's address".into())?;
        Ok(address.port())
    }

    /// Accepts a connection that is waiting. Returns `None` if there is none.
    pub(crate) fn accept_waiting(&self) -> Result<Option<TcpStream>, Error> {
        match self.listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context(|| "cannot accept".into()),
        }
    }

    /// Waits for the next connection that `child` opens, and accepts it. The returned stream is
    /// blocking.
    pub(crate) fn accept(&self, child: &mut PinnedChild) -> Result<TcpStream, Error> {
        let deadline = Instant::now() + STALL_LIMIT;
        while Instant::now() < deadline {
            interrupt::check()?;
            child.check_alive()?;
            wait_readable(&mut [PollFd::new(&self.listener, PollFlags::IN)])?;
            let Some(stream) = self.accept_waiting()? else {
                continue;
            };
            stream
                .set_nonblocking(false)
                .context(|| "cannot set up a connection".into())?;
            let got = tcp::congestion(&stream)?;
            if got != self.congestion {
                return Err(Error::WrongResult(format!(
                    "the congestion control of the accepted connection is {got}, not {}",
                    self.congestion
                )));
            }
            return Ok(stream);
        }
        Err(Error::Unavailable(format!(
            "it did not connect within {} s",
            STALL_LIMIT.as_secs()
        )))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
