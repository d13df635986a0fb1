//! A file that is open for serving, with what its responses need.

use std::ffi::CString;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, HeaderValue};

use super::headers::{self, ConfiguredHeaders, FileHeaders};
use super::media_type::MediaType;
use super::precompressed::Precompressed;
use crate::open_file::OpenFile;
use crate::serve_files::request::conditional::Validators;
use crate::serve_files::request::negotiate::Coding;
use crate::serve_files::resolve::root::Root;

/// A file that is open for serving, and everything about its responses that can be prepared.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) file: Arc<OpenFile>,
    /// The complete headers of a 200.
    pub(crate) headers: HeaderMap,
    /// Where its precompressed files would be, if they are to be looked up.
    pub(crate) precompressed: Option<Precompressed>,
    /// The media type, even if a configured header replaces `Content-Type`.
    pub(crate) media_type: HeaderValue,
    root: Arc<Root>,
    path: CString,
    /// The index files that take precedence over this one. None of them may exist.
    earlier_index: Box<[CString]>,
    etag: HeaderValue,
    last_modified: Option<u64>,
    pub(crate) is_stable: bool,
}

/// What an [`Entry`] is made of.
pub(crate) struct EntrySource {
    pub(crate) file: OpenFile,
    pub(crate) path: CString,
    pub(crate) earlier_index: Vec<CString>,
    /// For a precompressed file: its coding, and the media type of the original.
    pub(crate) coding: Option<(Coding, HeaderValue)>,
    /// A time *before* the `statx` of the file. Only then does "stable" mean that no change after
    /// the `statx` can fall into the same tick of the clock.
    pub(crate) before_stat: SystemTime,
}

impl Entry {
    pub(crate) fn new(
        source: EntrySource,
        root: &Arc<Root>,
        configured: &ConfiguredHeaders,
        precompressed: bool,
    ) -> Self {
        let EntrySource {
            file,
            path,
            earlier_index,
            coding,
            before_stat,
        } = source;
        let stat = *file.stat();
        let is_stable = stat.is_stable(before_stat);
        let (media_type, is_negotiable) = match &coding {
            Some((_, media_type)) => (media_type.clone(), true),
            None => {
                let media_type = MediaType::of(path.to_bytes());
                let is_negotiable = precompressed && media_type.is_compressible;
                (media_type.value, is_negotiable)
            }
        };
        let coding = coding.map(|(coding, _)| coding);
        let etag = headers::etag(&stat, is_stable, coding);
        let last_modified = headers::last_modified(&stat, before_stat);
        let headers = headers::of_file(&FileHeaders {
            media_type: &media_type,
            len: stat.len(),
            etag: &etag,
            last_modified,
            is_negotiable,
            coding,
            configured,
        });
        let has_precompressed = is_negotiable && coding.is_none();
        Self {
            file: Arc::new(file),
            headers,
            precompressed: has_precompressed.then(|| Precompressed::of(path.to_bytes())),
            media_type,
            root: Arc::clone(root),
            path,
            earlier_index: earlier_index.into(),
            etag,
            last_modified,
            is_stable,
        }
    }

    /// The length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.file.stat().len()
    }

    pub(crate) fn validators(&self) -> Validators<'_> {
        Validators {
            etag: self.etag.as_bytes(),
            last_modified: self.last_modified,
            is_stable: self.is_stable,
        }
    }

    /// Whether `path` still leads to this very file with the same bytes. One system call, and one
    /// more for each index file that takes precedence.
    ///
    /// The look-up follows links without checking that they stay beneath the root. This is safe.
    /// The entry's own descriptor keeps its inode from being used for another file; if the bytes
    /// are in memory instead, another file with that inode number has a later change time. So an
    /// equal stat means that the path leads to the unchanged *file that was opened*, when the check
    /// was made. A link that was replaced since then can at worst lead to the same file in another
    /// way. For any other file the stat differs, and the request goes through the checked open.
    pub(crate) fn is_current(&self) -> bool {
        self.root
            .stat(&self.path)
            .is_ok_and(|stat| stat == *self.file.stat())
            && self
                .earlier_index
                .iter()
                .all(|path| self.root.is_absent(path))
    }

    /// Whether the file is known to have no precompressed files. At most one system call.
    pub(crate) fn has_no_precompressed(&self) -> bool {
        let precompressed = self.precompressed.as_ref();
        precompressed.is_none_or(|precompressed| precompressed.is_known_absent(&self.root))
    }

    /// Whether this entry may serve later requests.
    ///
    /// While the last change is so recent that another would not show in the stat, bytes that were
    /// read into memory may silently be out of date. The bytes of an open descriptor are read when
    /// they are sent, and its tag is weak.
    pub(super) fn is_cacheable(&self) -> bool {
        self.is_stable || self.file.in_memory().is_none()
    }

    /// Whether the tag is weak, but could be strong by the current time.
    pub(super) fn has_become_stable(&self) -> bool {
        !self.is_stable && self.file.stat().is_stable(SystemTime::now())
    }
}
