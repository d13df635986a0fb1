//! The access log record of the request in progress.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::StatusCode;
use uncopied_http::Address;

use crate::commands::serve::log_line::{LogRecord, RequestLine};
use crate::server::access_log::AccessLog;
use crate::server::connections::ConnectionCommand;

use super::buffers::RequestBuffer;
use super::send::SentResponse;
use super::state::{ConnectionState, Phase};

/// The status that is logged if the connection ends before there is a response. nginx logs the same
/// status.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// A request that is being handled, together with its bytes. Writes the log record when dropped, so
/// that a request is logged however its connection ends.
pub(super) struct LoggedRequest<'a> {
    pub(super) buffer: &'a mut RequestBuffer,
    pub(super) status: StatusCode,
    pub(super) sent: SentResponse,
    /// Why the response is incomplete.
    pub(super) error: Option<String>,
    pub(super) is_complete: bool,
    log: Option<LogContext<'a>>,
}

/// What the records of a connection have in common, and when the request arrived.
struct LogContext<'a> {
    log: &'a Arc<AccessLog>,
    client: &'a Address,
    state: &'a ConnectionState,
    at: SystemTime,
    started: Instant,
}

impl<'a> LoggedRequest<'a> {
    pub(super) fn begin(
        log: Option<&'a Arc<AccessLog>>,
        client: &'a Address,
        state: &'a ConnectionState,
        buffer: &'a mut RequestBuffer,
    ) -> Self {
        Self {
            buffer,
            status: StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or_default(),
            sent: SentResponse::default(),
            error: None,
            is_complete: false,
            log: log.map(|log| LogContext {
                log,
                client,
                state,
                at: SystemTime::now(),
                started: Instant::now(),
            }),
        }
    }
}

impl Drop for LoggedRequest<'_> {
    fn drop(&mut self) {
        let Some(context) = &self.log else {
            return;
        };
        let request = self.buffer.request();
        let was_aborted = context.state.command() == ConnectionCommand::Abort;
        let error = match (&self.error, context.state.phase()) {
            (Some(error), _) => Some(error.as_str()),
            (None, Phase::Sending) if was_aborted => {
                Some("the server closed the connection, because the client did not read")
            }
            (None, _) if !self.is_complete => Some("the server closed the connection"),
            (None, _) => None,
        };
        context.log.write(&LogRecord {
            at: context.at,
            took: context.started.elapsed(),
            client: context.client,
            request: request.map(|request| RequestLine {
                method: request.method(),
                target: request.raw_target(),
                version: request.head.version(),
                referer: request.field("referer"),
                agent: request.field("user-agent"),
            }),
            status: self.status,
            body_bytes: self.sent.body_bytes,
            is_complete: self.is_complete,
            mechanism: self.sent.mechanism,
            error,
        });
    }
}
