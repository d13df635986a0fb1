//! The precompressed files of a file, and whether there are any.

use std::ffi::CString;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::file_stat::FileStat;
use crate::serve_files::request::negotiate::Coding;
use crate::serve_files::resolve::root::Root;

/// Where the precompressed files of a file would be.
///
/// Most files have none, and most clients accept three codings: trying all three each time would
/// cost more than the file itself. So the service remembers the stat of a directory in which none
/// of them exists. The directory's own times change with every name that is added or removed.
#[derive(Debug)]
pub(crate) struct Precompressed {
    pub(crate) files: Box<[PrecompressedFile]>,
    dir: CString,
    /// The stat of the directory when none of the files was in it.
    dir_without_files: Mutex<Option<FileStat>>,
}

/// Where one precompressed file would be.
#[derive(Debug)]
pub(crate) struct PrecompressedFile {
    pub(crate) coding: Coding,
    /// Its key in the cache. No request path begins like it.
    pub(crate) key: Box<[u8]>,
    /// Its path beneath the root.
    pub(crate) path: CString,
}

impl Precompressed {
    pub(super) fn of(path: &[u8]) -> Self {
        let file = |coding: Coding| {
            let path = CString::new([path, coding.suffix().as_bytes()].concat()).ok()?;
            let key = [b"precompressed:", path.to_bytes()].concat().into();
            Some(PrecompressedFile { coding, key, path })
        };
        let parent = path.iter().rposition(|byte| *byte == b'/');
        let dir = parent.and_then(|slash| CString::new(&path[..slash]).ok());
        Self {
            files: Coding::ALL.into_iter().filter_map(file).collect(),
            dir: dir.unwrap_or(c".".to_owned()),
            dir_without_files: Mutex::new(None),
        }
    }

    /// Whether it is known that there are none. At most one system call.
    pub(crate) fn is_known_absent(&self, root: &Root) -> bool {
        let dir = &self.dir_without_files;
        let known = *dir.lock().unwrap_or_else(PoisonError::into_inner);
        known.is_some_and(|known| root.stat(&self.dir).is_ok_and(|stat| stat == known))
    }

    /// Records that there are none, if that is so and the directory is stable. Only then do its
    /// times show a file that is created later.
    pub(crate) fn record_if_absent(&self, root: &Root) {
        let now = SystemTime::now();
        let stat = root.stat(&self.dir).ok().filter(|stat| stat.is_stable(now));
        // A dangling link counts as present: its target may be created without a change to this
        // directory.
        let absent = stat.filter(|_| self.files.iter().all(|file| root.is_absent(&file.path)));
        let dir = &self.dir_without_files;
        *dir.lock().unwrap_or_else(PoisonError::into_inner) = absent;
    }
}
