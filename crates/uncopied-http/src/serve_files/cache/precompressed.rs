//! Finds out whether a file has precompressed versions.

use std::ffi::CString;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::file_stat::FileStat;
use crate::serve_files::request::negotiate::Coding;
use crate::serve_files::resolve::root::Root;

/// The paths at which precompressed versions of one file may exist.
///
/// Most files have no precompressed version, but most clients accept three codings, and looking for
/// all three on each request would cost more than sending the file itself. So once no version has
/// been found, the service remembers the metadata of the directory. Adding a file to the directory
/// would change the directory's times, so as long as the metadata stays equal, there is still no
/// precompressed version.
#[derive(Debug)]
pub(crate) struct Precompressed {
    pub(crate) files: Box<[PrecompressedFile]>,
    dir: CString,
    /// The metadata that the directory had when none of `files` existed in it.
    dir_without_files: Mutex<Option<FileStat>>,
}

/// The path at which one precompressed file may exist.
#[derive(Debug)]
pub(crate) struct PrecompressedFile {
    pub(crate) coding: Coding,
    /// The file's key in the cache. The key does not begin with a slash, so it cannot equal a
    /// request path.
    pub(crate) key: Box<[u8]>,
    /// The file's path beneath the root.
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

    /// Whether all of the files are known to be absent. Makes at most one system call.
    ///
    /// That call follows links, even out of the root. This cannot serve a file that must not be
    /// served, because all that follows from it is that no precompressed file is opened. Nor can it
    /// hide one: equal metadata is that of the same directory, wherever it is now, and none of the
    /// files is in it.
    pub(crate) fn is_known_absent(&self, root: &Root) -> bool {
        let dir = &self.dir_without_files;
        let known = *dir.lock().unwrap_or_else(PoisonError::into_inner);
        known.is_some_and(|known| root.stat(&self.dir).is_ok_and(|stat| stat == known))
    }

    /// Checks whether all of the files are absent, and if so, remembers it. Remembers nothing if
    /// the directory is not [stable](FileStat::is_stable), because in that case, creating a file
    /// right after the check might leave the directory's times unchanged.
    pub(crate) fn record_if_absent(&self, root: &Root) {
        let now = SystemTime::now();
        let stat = root.stat(&self.dir).ok().filter(|stat| stat.is_stable(now));
        // A dangling link counts as present, because its target may be created later without
        // changing this directory.
        let absent = stat.filter(|_| self.files.iter().all(|file| root.is_absent(&file.path)));
        let dir = &self.dir_without_files;
        *dir.lock().unwrap_or_else(PoisonError::into_inner) = absent;
    }
}
