//! What the bytes of a download go to, over all its requests.

use std::cell::RefCell;
use std::rc::Rc;

use super::error::GetError;
use super::file::{Partial, Version};
use super::sink::{Output, Sink};

/// What gets the bytes, and how many it has.
pub(super) enum Target<'a> {
    File(&'a Rc<Partial>),
    /// What was written cannot be taken back.
    Stream {
        output: Rc<Output>,
        version: RefCell<Version>,
    },
}

impl Target<'_> {
    /// Returns the number of bytes that need not be asked for again.
    pub(super) fn have(&self) -> u64 {
        match self {
            Self::File(partial) => partial.usable().count(),
            Self::Stream { output, .. } => output.emitted(),
        }
    }

    /// Returns the number of bytes that were written.
    pub(super) fn position(&self) -> u64 {
        match self {
            Self::File(partial) => partial.position(),
            Self::Stream { output, .. } => output.emitted(),
        }
    }

    pub(super) fn version(&self) -> Version {
        match self {
            Self::File(partial) => partial.version(),
            Self::Stream { version, .. } => version.borrow().clone(),
        }
    }

    /// Returns the length of the whole file, if it is known.
    pub(super) fn total(&self) -> Option<u64> {
        match self {
            Self::File(partial) => partial.total(),
            Self::Stream { version, .. } => version.borrow().total,
        }
    }

    /// Prepares for a body that does not arrive at once, so that some of it may be kept.
    pub(super) fn prepare_for_parts(&self) -> Result<(), GetError> {
        match self {
            Self::File(partial) => partial.use_temporary_name(),
            Self::Stream { .. } => Ok(()),
        }
    }

    /// Begins with the first byte of a version.
    pub(super) fn restart(&self, new: Version) -> Result<(), GetError> {
        match self {
            Self::File(partial) => partial.restart(new),
            Self::Stream { output, .. } if output.emitted() > 0 => Err(GetError::Changed),
            Self::Stream { version, .. } => {
                *version.borrow_mut() = new;
                Ok(())
            }
        }
    }

    pub(super) fn set_total(&self, total: u64) {
        match self {
            Self::File(partial) => partial.set_total(total),
            Self::Stream { version, .. } => version.borrow_mut().total = Some(total),
        }
    }

    pub(super) fn sink(&self, offset: u64, direct: bool) -> Result<Sink, GetError> {
        match self {
            Self::File(partial) => partial.sink(offset, direct).map(Sink::File),
            Self::Stream { output, .. } => Ok(Sink::Stream(Rc::clone(output))),
        }
    }

    /// Whether another request can go on, or begin again.
    pub(super) fn can_retry(&self) -> bool {
        match self {
            Self::File(_) => true,
            Self::Stream { output, version } => {
                output.emitted() == 0 || version.borrow().validator.is_some()
            }
        }
    }
}
