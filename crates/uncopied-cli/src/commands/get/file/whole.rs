//! Whole files get their final names.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, RenameFlags, linkat};
use rustix::io::Errno;

use super::identity::Identity;
use super::names::Names;
use crate::commands::get::error::GetError;

/// A file whose bytes have all been written. Once they are on the disk, it gets its final name.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) file: Arc<File>,
    pub(super) names: Arc<Names>,
    pub(super) source: Source,
}

/// Where the file is until it has its final name.
#[derive(Debug)]
pub(super) enum Source {
    /// It has no name.
    Unnamed,
    /// At its temporary name.
    Temporary {
        identity: Identity,
        len: u64,
        /// Whether another file may have the final name.
        replace: bool,
    },
}

impl Whole {
    /// Returns the path for messages.
    pub(super) fn path(&self) -> &Path {
        self.names.temporary()
    }

    /// Gives the file its final name.
    ///
    /// # Errors
    ///
    /// Another file has the name and must not be replaced, the temporary file was exchanged, or the
    /// file system cannot do it.
    pub(super) fn give_name(&self) -> Result<(), GetError> {
        match &self.source {
            Source::Unnamed => self.link(),
            Source::Temporary {
                identity,
                len,
                replace,
            } => self.rename(*identity, *len, *replace),
        }
    }

    /// Gives a temporary file its final name.
    fn rename(&self, identity: Identity, len: u64, replace: bool) -> Result<(), GetError> {
        let temporary = self.names.temporary();
        // Another process may have changed the file in spite of the lock. A wrong length shows it.
        let is_ours = identity.len_at(temporary) == Some(len);
        if !is_ours {
            return Err(GetError::NotOurs(temporary.to_owned()));
        }
        let flags = match replace {
            true => RenameFlags::empty(),
            false => RenameFlags::NOREPLACE,
        };
        let target = self.names.target();
        match rustix::fs::renameat_with(CWD, temporary, CWD, target, flags) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(GetError::Exists(target.to_owned())),
            // The file system cannot do it at once (renameat2(2)).
            Err(Errno::INVAL) if !replace => {
                if fs::symlink_metadata(target).is_ok() {
                    return Err(GetError::Exists(target.to_owned()));
                }
                fs::rename(temporary, target).map_err(GetError::file("rename", temporary))
            }
            Err(errno) => Err(GetError::file("rename", temporary)(errno.into())),
        }
    }

    /// Gives a file without a name its final name. Never replaces another file.
    fn link(&self) -> Result<(), GetError> {
        let (file, target) = (&self.file, self.names.target());
        let linked = match linkat(file, "", CWD, target, AtFlags::EMPTY_PATH) {
            // Before Linux 6.10, that needs CAP_DAC_READ_SEARCH.
            Err(Errno::NOENT) => {
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                linkat(CWD, path, CWD, target, AtFlags::SYMLINK_FOLLOW)
            }
            linked => linked,
        };
        linked.map_err(|errno| match errno {
            Errno::EXIST => GetError::Exists(target.to_owned()),
            errno => GetError::file("create", target)(errno.into()),
        })
    }
}
