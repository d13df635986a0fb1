//! Why a measurement fails.

use std::io;
use std::net::SocketAddr;

use uncopied_measure::error::chain;

use crate::error::kernel_text;

/// An error that ends the run. Its text is the line on standard error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// Ctrl-C or SIGTERM has arrived.
    #[error("interrupted; no results were written")]
    Interrupted,
    /// No size, direction and mechanism was chosen that can be measured.
    #[error("nothing to measure: none of the directions has one of the mechanisms")]
    NothingToMeasure,
    /// The listener cannot listen.
    #[error("cannot listen on {address}: {}; choose another address with --listen", kernel_text(.source))]
    Listen {
        /// The address, as the user gave it.
        address: SocketAddr,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The other machine cannot be reached.
    #[error("cannot connect to {address}: {}; start `uncopied bench --listen` there", kernel_text(.source))]
    Connect {
        /// The address, as the user gave it.
        address: String,
        /// The error of the kernel, or of the resolver.
        source: io::Error,
    },
    /// The congestion control cannot be chosen.
    #[error("cannot set the congestion control {name}: {}; choose one of net.ipv4.tcp_allowed_congestion_control", kernel_text(.source))]
    Congestion {
        /// Its name.
        name: String,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The listener does not accept this run.
    #[error("the listener refuses: {0}")]
    Refused(String),
    /// The other side speaks another language.
    #[error("the other side does not speak the protocol of `uncopied bench`: {0}")]
    Protocol(String),
    /// The other side is silent.
    #[error("the other side has not replied within {0} s")]
    Silent(u64),
    /// The other side is gone.
    #[error("the other side has closed the connection")]
    Closed,
    /// A connection fails.
    #[error("the connection fails: {}", kernel_text(.0))]
    Connection(io::Error),
    /// A measurement fails, in which bytes were lost or changed, for example.
    #[error("{cell}: {why}")]
    Cell {
        /// What was measured.
        cell: String,
        /// What has failed.
        why: String,
    },
    /// A network namespace cannot be set up.
    #[error("cannot set up network namespaces: {0}")]
    Namespace(String),
    /// Something else cannot be set up.
    #[error("cannot {what}: {}", kernel_text(.source))]
    Setup {
        /// The step that failed, worded to follow "cannot".
        what: String,
        /// The error of the kernel.
        source: io::Error,
    },
}

impl BenchError {
    /// Returns a function that makes an error from that of a system call. `what` follows "cannot".
    pub(super) fn setup(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Setup { what, source }
    }
}

/// Why a single cell has no figures.
#[derive(Debug)]
pub(super) enum CellError {
    /// This machine does not support it: a row that says so.
    Refused(String),
    /// It fails: an error of the run.
    Failed(String),
}

impl CellError {
    /// Returns an error of a transfer. It is a refusal if nothing was moved before it, and no
    /// mechanism was supported.
    pub(super) fn of_transfer(error: &uncopied::Error, moved_before: u64) -> Self {
        let text = chain(error);
        let is_refusal = matches!(error.kind(), uncopied::ErrorKind::Unsupported);
        match is_refusal && moved_before + error.moved() == 0 {
            true => Self::Refused(text),
            false => Self::Failed(text),
        }
    }
}
