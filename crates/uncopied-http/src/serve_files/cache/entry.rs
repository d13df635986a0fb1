//! The entries of the cache.

use std::ffi::CString;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, HeaderValue};

use super::headers::{self, ConfiguredHeaders, FileHeaders};
use super::media_type::MediaType;
use super::precompressed::Precompressed;
use crate::open_file::OpenFile;
use crate::serve_files::file_response::write_lines;
use crate::serve_files::request::conditional::Validators;
use crate::serve_files::request::negotiate::Coding;
use crate::serve_files::resolve::checked_path::{CheckedPath, QueriedDirs};
use crate::serve_files::resolve::root::Root;

/// An open file, together with everything about its responses that can be prepared in advance.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) file: Arc<OpenFile>,
    /// The complete headers of a 200 response.
    pub(crate) headers: HeaderMap,
    /// The same headers as lines of HTTP/1.1.
    pub(crate) header_lines: Box<[u8]>,
    /// The paths at which precompressed files may exist. `None` if they are not looked for.
    pub(crate) precompressed: Option<Precompressed>,
    /// The file's own media type. The `Content-Type` in `headers` may differ, if one is configured
    /// for all responses.
    pub(crate) media_type: HeaderValue,
    path: CheckedPath,
    /// The paths of the index files that take precedence over this one. If any of them exists, this
    /// entry is out of date.
    earlier_index: Box<[CString]>,
    etag: Option<HeaderValue>,
    last_modified: Option<u64>,
    /// Whether this is the fallback page, which is never cached for long; see
    /// [`ServeFilesBuilder::fallback`](crate::ServeFilesBuilder::fallback).
    pub(crate) is_fallback: bool,
    /// Whether the file was [stable](crate::FileStat::is_stable) when it was opened.
    pub(crate) is_stable: bool,
}

/// The values from which an [`Entry`] is made.
pub(crate) struct EntrySource {
    pub(crate) file: OpenFile,
    pub(crate) path: CString,
    pub(crate) earlier_index: Vec<CString>,
    /// Whether this is the [fallback page](crate::ServeFilesBuilder::fallback), or a precompressed
    /// version of it.
    pub(crate) is_fallback: bool,
    /// For a precompressed file: its coding, and the media type of the original.
    pub(crate) coding: Option<(Coding, HeaderValue)>,
    /// The system time shortly *before* the `statx` of the file. With a later time, the file might
    /// count as stable although it changed again right after the `statx`, within the same clock
    /// tick as the change that `statx` reported.
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
            is_fallback,
            coding,
            before_stat,
        } = source;
        let stat = *file.stat();
        let is_stable = stat.is_stable(before_stat);
        let (media_type, is_negotiable, content_coding) = match &coding {
            Some((coding, media_type)) => (media_type.clone(), true, Some(*coding)),
            None => {
                let media_type = MediaType::of(path.to_bytes(), &configured.types);
                let is_negotiable = precompressed && media_type.is_compressible;
                (media_type.value, is_negotiable, media_type.coding)
            }
        };
        let coding = coding.map(|(coding, _)| coding);
        let etag = headers::etag(configured.entity_tags, &stat, is_stable, coding);
        let last_modified = headers::last_modified(&stat, before_stat);
        let headers = headers::of_file(&FileHeaders {
            media_type: &media_type,
            len: stat.len(),
            etag: etag.as_ref(),
            last_modified,
            is_negotiable,
            coding: content_coding,
            is_fallback,
            configured,
        });
        let mut header_lines = Vec::new();
        write_lines(&headers, &mut header_lines);
        let has_precompressed = is_negotiable && coding.is_none();
        Self {
            file: Arc::new(file),
            headers,
            header_lines: header_lines.into(),
            precompressed: has_precompressed.then(|| Precompressed::of(path.to_bytes())),
            media_type,
            path: CheckedPath::new(root, path),
            earlier_index: earlier_index.into(),
            etag,
            last_modified,
            is_fallback,
            is_stable,
        }
    }

    /// The length of the file in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.file.stat().len()
    }

    pub(crate) fn validators(&self) -> Validators<'_> {
        Validators {
            etag: self.etag.as_ref().map(HeaderValue::as_bytes),
            last_modified: self.last_modified,
            is_stable: self.is_stable,
        }
    }

    /// Whether opening the entry's path now would yield this very file, with unchanged content.
    /// Makes the system calls of [`CheckedPath::leads_to`], and one more for each index file that
    /// takes precedence.
    ///
    /// No other file can have equal metadata: while the entry holds a descriptor, the inode number
    /// is not reused, and if the entry holds the bytes in memory instead, a newer file with the
    /// same inode number has a later change time.
    ///
    /// For the index files that take precedence, only their absence counts, so it does no harm that
    /// [`Root::is_absent`] walks through links. While the path of this entry stays beneath the
    /// root, so does their directory, which is the same.
    pub(crate) fn is_current(&self, queried: &mut QueriedDirs) -> bool {
        let root = self.path.root();
        self.path.leads_to(self.file.stat(), queried)
            && self.earlier_index.iter().all(|path| root.is_absent(path))
    }

    /// Whether the file was opened beneath this very root.
    pub(crate) fn is_beneath(&self, root: &Arc<Root>) -> bool {
        Arc::ptr_eq(self.path.root(), root)
    }

    /// Whether this file was modified before `original`, so that it cannot be a compressed version
    /// of what `original` contains now.
    ///
    /// Some tools give the compressed file the time of the original, but cut off below the second
    /// or the microsecond. A time that looks cut off is compared with an equally cut one.
    pub(crate) fn is_older_than(&self, original: &Self) -> bool {
        let (own_seconds, own_nanos) = self.file.stat().modified();
        let (seconds, nanos) = original.file.stat().modified();
        let unit = match own_nanos {
            0 => 1_000_000_000,
            _ if own_nanos % 1000 == 0 => 1000,
            _ => 1,
        };
        (own_seconds, own_nanos) < (seconds, nanos - nanos % unit)
    }

    /// Whether this entry may serve later requests.
    ///
    /// False if the bytes were read into memory before the file was
    /// [stable](crate::FileStat::is_stable). In that case, a further change might leave the
    /// metadata as it is, so nothing would show that the bytes are out of date. A file that is kept
    /// open does not have this problem: its bytes are read when they are sent, and its `ETag` is
    /// weak until the file is stable.
    pub(super) fn is_cacheable(&self) -> bool {
        self.is_stable || self.file.in_memory().is_none()
    }

    /// Whether the file has become stable only since it was opened. In that case, this entry has a
    /// weak `ETag`, and should be replaced with a new entry, which will have a strong one.
    pub(super) fn has_become_stable(&self) -> bool {
        !self.is_stable && self.file.stat().is_stable(SystemTime::now())
    }
}
