//! A transfer in any direction between two descriptors, for drivers that need not know which.

use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, seek};

use super::{DescriptorTransfer, ReceiveTransfer, RelayTransfer, Transfer};
use crate::report::Report;

/// A transfer between two descriptors.
#[derive(Debug)]
pub(crate) enum AnyTransfer {
    /// From a file to a socket.
    Send(Transfer),
    /// From a socket to a file, a pipe or a device.
    Receive(ReceiveTransfer),
    /// From a socket to another one.
    Relay(RelayTransfer),
    /// Between any two others.
    Descriptors(DescriptorTransfer),
}

impl AnyTransfer {
    /// Moves the position of a file to the first byte that the sink has not accepted, or after the
    /// last byte that was written.
    pub(crate) fn store_positions(&self, source: BorrowedFd<'_>, sink: BorrowedFd<'_>) {
        // A file whose position could be read can be positioned.
        let _ = match self {
            Self::Send(transfer) => seek(source, SeekFrom::Start(transfer.offset())).is_ok(),
            Self::Receive(transfer) => transfer
                .offset()
                .is_some_and(|offset| seek(sink, SeekFrom::Start(offset)).is_ok()),
            Self::Relay(_) => false,
            Self::Descriptors(transfer) => {
                transfer.give_back(source);
                true
            }
        };
    }

    /// Returns the report so far.
    pub(crate) fn report(&self) -> &Report {
        match self {
            Self::Send(transfer) => transfer.report(),
            Self::Receive(transfer) => transfer.report(),
            Self::Relay(transfer) => transfer.report(),
            Self::Descriptors(transfer) => transfer.report(),
        }
    }
}
