//! A file that is open for serving, with what its responses need.

use std::ffi::CString;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, HeaderValue};

use super::headers::{self, ConfiguredHeaders, FileHeaders};
use super::media_type::Media;
use super::precompressed::Sides;
use crate::open_file::OpenFile;
use crate::serve_files::request::conditional::Validators;
use crate::serve_files::request::negotiate::Coding;
use crate::serve_files::resolve::root::Root;

/// A file that is open for serving, and everything about its answers that can be made beforehand.
#[derive(Debug)]
pub(crate) struct Entry {
    root: Arc<Root>,
    pub(crate) file: Arc<OpenFile>,
    /// The headers of a 200, complete.
    pub(crate) headers: HeaderMap,
    /// Where its compressed side files would be, if they are to be looked up.
    pub(crate) sides: Option<Sides>,
    /// The media type, also where a configured header takes the place of `Content-Type`.
    pub(crate) media: HeaderValue,
    path: CString,
    /// What must not be there for this to be the answer: the index files that come before it.
    earlier: Box<[CString]>,
    etag: HeaderValue,
    modified: Option<u64>,
    pub(crate) settled: bool,
}

/// What an [`Entry`] is made of.
pub(crate) struct Found {
    pub(crate) file: OpenFile,
    pub(crate) path: CString,
    pub(crate) earlier: Vec<CString>,
    /// For a side file: its coding, and the type of what it is a coding of.
    pub(crate) coding: Option<(Coding, HeaderValue)>,
    /// The time just *before* the file was asked for its facts: only then does "settled" mean that
    /// no change after the facts can hide in the same tick of the clock.
    pub(crate) asked: SystemTime,
}

impl Entry {
    pub(crate) fn new(
        found: Found,
        root: &Arc<Root>,
        configured: &ConfiguredHeaders,
        precompressed: bool,
    ) -> Self {
        let Found {
            file,
            path,
            earlier,
            coding,
            asked,
        } = found;
        let facts = *file.facts();
        let settled = facts.settled(asked);
        let etag = headers::etag(&facts, settled, coding.as_ref().map(|(coding, _)| *coding));
        let modified = headers::modified(&facts, asked);
        let (media, negotiable) = match &coding {
            Some((_, media)) => (media.clone(), true),
            None => {
                let media = Media::of(path.to_bytes());
                (media.value, precompressed && media.compressible)
            }
        };

        let coding = coding.map(|(coding, _)| coding);
        let headers = headers::of_file(&FileHeaders {
            media: &media,
            len: facts.len(),
            etag: &etag,
            modified,
            negotiable,
            coding,
            configured,
        });
        let sides = (negotiable && coding.is_none()).then(|| Sides::of(path.to_bytes()));
        let file = Arc::new(file);
        let earlier = earlier.into();
        Self {
            root: Arc::clone(root),
            file,
            headers,
            sides,
            media,
            path,
            earlier,
            etag,
            modified,
            settled,
        }
    }

    /// The length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.file.facts().len()
    }

    pub(crate) fn validators(&self) -> Validators<'_> {
        let (etag, modified) = (self.etag.as_bytes(), self.modified);
        Validators {
            etag,
            modified,
            settled: self.settled,
        }
    }

    /// Whether what `path` leads to now is this very file with these very bytes. One system call.
    ///
    /// The look-up follows links without a check that they stay beneath the root, and it may: the
    /// entry's own descriptor keeps its inode from being used for another file (and where the bytes
    /// are in memory instead, another file of that number has a later time of change), so equal facts
    /// mean that the path leads to the *file that was opened* when the check was made, unchanged. A link
    /// that was swapped since can at worst lead to that same file on another way. Any other file is
    /// not equal, whatever it is, and sends the request through the checked open.
    pub(crate) fn is_current(&self) -> bool {
        self.root
            .facts(&self.path)
            .is_ok_and(|facts| facts == *self.file.facts())
            && self.earlier.iter().all(|path| self.root.has_no(path))
    }

    /// Whether it is known that the file has no side file. One system call at most.
    pub(crate) fn has_no_sides(&self) -> bool {
        let sides = self.sides.as_ref();
        sides.is_none_or(|sides| sides.known_absent(&self.root))
    }

    /// Whether this may answer later requests.
    ///
    /// While the last change is so recent that another would not show in the facts, bytes that were
    /// read into memory may be out of date unseen. Those of an open descriptor are read when they
    /// are sent, and the tag says that it is weak.
    pub(crate) fn keeps(&self) -> bool {
        self.settled || self.file.in_memory().is_none()
    }

    /// Whether the tag is weak by now for no reason.
    pub(crate) fn has_settled(&self) -> bool {
        !self.settled && self.file.facts().settled(SystemTime::now())
    }
}
