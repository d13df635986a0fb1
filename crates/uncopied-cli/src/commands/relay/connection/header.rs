//! Receives the PROXY header with which a client must begin.

use std::time::Instant;

use rustix::io::Errno;

use crate::commands::relay::proxy_protocol::{self, Header, MAX_V2_BYTES, Parsed};
use crate::flags::ProxyVersions;

use super::end::End;
use super::side::Side;

/// A PROXY header that is being received.
pub(super) struct HeaderReader {
    versions: ProxyVersions,
    buffer: Vec<u8>,
    /// When the header must be complete.
    deadline: Option<Instant>,
}

/// A header, and the bytes of the stream that were received with it.
pub(super) struct ReceivedHeader {
    pub(super) header: Header,
    pub(super) rest: Vec<u8>,
}

impl HeaderReader {
    pub(super) fn new(versions: ProxyVersions, deadline: Option<Instant>) -> Self {
        Self {
            versions,
            buffer: Vec::new(),
            deadline,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Receives what has arrived. Returns `None` if the header is not complete yet.
    pub(super) fn advance(
        &mut self,
        client: &mut Side,
        now: Instant,
    ) -> Result<Option<ReceivedHeader>, End> {
        while client.is_readable {
            // An incomplete header is always shorter than the longest one.
            let room = MAX_V2_BYTES.saturating_sub(self.buffer.len()).max(1);
            match client.socket.receive(&mut self.buffer, room) {
                Ok(0) => return Err(End::ProxyHeaderMissing("the client closed the connection")),
                Ok(_) => {}
                Err(Errno::AGAIN) => {
                    client.is_readable = false;
                    break;
                }
                Err(errno) => return Err(End::Client(errno.into())),
            }
            let parsed = proxy_protocol::parse(&self.buffer, self.versions);
            match parsed.map_err(End::ProxyHeader)? {
                Parsed::Complete { header, len } => {
                    let rest = self.buffer.split_off(len);
                    return Ok(Some(ReceivedHeader { header, rest }));
                }
                Parsed::Incomplete => {}
            }
        }
        match self.deadline.is_some_and(|deadline| now >= deadline) {
            true => Err(End::ProxyHeaderMissing("it did not arrive in time")),
            false => Ok(None),
        }
    }
}
