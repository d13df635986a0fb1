//! Compressed side files, and whether there are any.

use std::ffi::CString;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::file_stat::Facts;
use crate::serve_files::request::negotiate::Coding;
use crate::serve_files::resolve::root::Root;

/// Where the compressed side files of a file would be.
///
/// Most files have none, and most clients accept three codings: to try all three each time would
/// cost more than the file itself. That there is none is therefore known by the directory, whose
/// own times change with every name that comes or goes.
#[derive(Debug)]
pub(crate) struct Sides {
    pub(crate) each: Box<[Side]>,
    dir: CString,
    /// The facts of a directory without any of them.
    none: Mutex<Option<Facts>>,
}

/// Where one compressed side file would be.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) coding: Coding,
    /// Its key in the cache. No request path begins like it.
    pub(crate) key: Box<[u8]>,
    /// Its path beneath the root.
    pub(crate) path: CString,
}

impl Sides {
    pub(super) fn of(path: &[u8]) -> Self {
        let side = |coding: Coding| {
            let path = CString::new([path, coding.suffix().as_bytes()].concat()).ok()?;
            let key = [b"side:", path.to_bytes()].concat().into();
            Some(Side { coding, key, path })
        };
        let parent = path.iter().rposition(|byte| *byte == b'/');
        let dir = parent.and_then(|slash| CString::new(&path[..slash]).ok());
        Self {
            each: Coding::ALL.into_iter().filter_map(side).collect(),
            dir: dir.unwrap_or(c".".to_owned()),
            none: Mutex::new(None),
        }
    }

    /// Whether it is known that there is none. One system call at most.
    pub(crate) fn known_absent(&self, root: &Root) -> bool {
        let known = *self.none.lock().unwrap_or_else(PoisonError::into_inner);
        known.is_some_and(|known| root.facts(&self.dir).is_ok_and(|facts| facts == known))
    }

    /// Notes that there is none, if that is so and the directory has settled: only then would its
    /// times tell of one that is made later.
    pub(crate) fn note_if_absent(&self, root: &Root) {
        let now = SystemTime::now();
        let facts = root
            .facts(&self.dir)
            .ok()
            .filter(|facts| facts.settled(now));
        // A link is there even if what it leads to is not: that may come without the directory's
        // knowledge.
        let none = facts.filter(|_| self.each.iter().all(|side| root.has_no(&side.path)));
        *self.none.lock().unwrap_or_else(PoisonError::into_inner) = none;
    }
}
