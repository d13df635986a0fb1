//! Open files between requests, never stale.

use std::ffi::CString;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG,
    LAST_MODIFIED, VARY,
};
use http::{HeaderMap, HeaderValue};
use quick_cache::OptionsBuilder;
use quick_cache::sync::Cache as QuickCache;

use super::builder::Config;
use super::conditional::Validators;
use super::mime::Media;
use super::negotiate::Coding;
use super::root::Root;
use crate::file::{Facts, OpenFile};

/// 9999-12-31 23:59:59, the last second that an HTTP date can name.
pub(super) const LAST_SECOND: u64 = 253_402_300_799;

/// A file that is open for serving, and everything about its answers that can be made beforehand.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) file: Arc<OpenFile>,
    /// The headers of a 200, complete.
    pub(super) headers: HeaderMap,
    /// Where its compressed side files would be, if they are to be looked up.
    pub(super) sides: Option<Sides>,
    /// The media type, also where a configured header takes the place of `Content-Type`.
    pub(super) media: HeaderValue,
    path: CString,
    /// What must not be there for this to be the answer: the index files that come before it.
    earlier: Box<[CString]>,
    etag: HeaderValue,
    modified: Option<u64>,
    pub(super) settled: bool,
}

/// Where the compressed side files of a file would be.
///
/// Most files have none, and most clients accept three codings: to try all three each time would
/// cost more than the file itself. That there is none is therefore known by the directory, whose
/// own times change with every name that comes or goes.
#[derive(Debug)]
pub(super) struct Sides {
    pub(super) each: Box<[Side]>,
    dir: CString,
    /// The facts of a directory without any of them.
    none: Mutex<Option<Facts>>,
}

/// Where one compressed side file would be.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) coding: Coding,
    /// Its key in the cache. No request path begins like it.
    pub(super) key: Box<[u8]>,
    /// Its path beneath the root.
    pub(super) path: CString,
}

/// What an [`Entry`] is made of.
pub(super) struct Found {
    pub(super) file: OpenFile,
    pub(super) path: CString,
    pub(super) earlier: Vec<CString>,
    /// For a side file: its coding, and the type of what it is a coding of.
    pub(super) coding: Option<(Coding, HeaderValue)>,
    /// The time just *before* the file was asked for its facts: only then does "settled" mean that
    /// no change after the facts can hide in the same tick of the clock.
    pub(super) asked: SystemTime,
}

impl Entry {
    pub(super) fn new(found: Found, config: &Config) -> Self {
        let Found {
            file,
            path,
            earlier,
            coding,
            asked,
        } = found;
        let facts = *file.facts();
        let settled = facts.settled(asked);
        let etag = etag(&facts, settled, coding.as_ref().map(|(coding, _)| *coding));
        let modified = modified(&facts, asked);
        let (media, negotiable) = match &coding {
            Some((_, media)) => (media.clone(), true),
            None => {
                let media = Media::of(path.to_bytes());
                (media.value, config.precompressed && media.compressible)
            }
        };

        let mut headers = HeaderMap::with_capacity(8 + config.headers.len());
        headers.insert(CONTENT_TYPE, media.clone());
        headers.insert(CONTENT_LENGTH, facts.len().into());
        headers.insert(ETAG, etag.clone());
        if let Some(seconds) = modified {
            let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
            headers.extend(HeaderValue::try_from(date).map(|date| (LAST_MODIFIED, date)));
        }
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        if negotiable {
            headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        }
        if let Some((coding, _)) = &coding {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.token()));
        }
        if let Some(value) = &config.cache_control {
            headers.insert(CACHE_CONTROL, value.clone());
        }
        config.decorate(&mut headers);

        let sides = (negotiable && coding.is_none()).then(|| Sides::of(path.to_bytes()));
        let file = Arc::new(file);
        let earlier = earlier.into();
        Self {
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
    pub(super) fn len(&self) -> u64 {
        self.file.facts().len()
    }

    pub(super) fn validators(&self) -> Validators<'_> {
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
    pub(super) fn is_current(&self, root: &Root) -> bool {
        root.facts(&self.path)
            .is_ok_and(|facts| facts == *self.file.facts())
            && self.earlier.iter().all(|path| root.has_no(path))
    }

    /// Whether this may answer later requests.
    ///
    /// While the last change is so recent that another would not show in the facts, bytes that were
    /// read into memory may be out of date unseen. Those of an open descriptor are read when they
    /// are sent, and the tag says that it is weak.
    fn keeps(&self) -> bool {
        self.settled || self.file.in_memory().is_none()
    }

    /// Whether the tag is weak by now for no reason.
    fn has_settled(&self) -> bool {
        !self.settled && self.file.facts().settled(SystemTime::now())
    }
}

/// The entity tag, from all that a change of the bytes changes. The time of the last status change
/// is part of it, because the other time can be set back.
///
/// A tag is strong only if it will never name other bytes. A weak one is spelt differently, so that
/// it stops matching once the file has settled: what a client got while the file was being written
/// is then asked for again.
fn etag(facts: &Facts, settled: bool, coding: Option<Coding>) -> HeaderValue {
    let ((modified, modified_nanos), (changed, changed_nanos)) =
        (facts.modified(), facts.changed());
    let (weak, moving) = if settled { ("", "") } else { ("W/", "-m") };
    let suffix = coding.map_or("", Coding::suffix);
    let len = facts.len();
    let tag = format!(
        "{weak}\"{modified:x}.{modified_nanos:x}-{len:x}-{changed:x}.{changed_nanos:x}{moving}{suffix}\""
    );
    HeaderValue::try_from(tag).unwrap_or(HeaderValue::from_static("W/\"\""))
}

/// `Last-Modified` in seconds since 1970: not in the future (RFC 9110 §8.8.2.1), and a date that
/// HTTP can write.
fn modified(facts: &Facts, now: SystemTime) -> Option<u64> {
    let now = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
    let seconds = u64::try_from(facts.modified().0).ok()?;
    (seconds <= now.min(LAST_SECOND)).then_some(seconds)
}

impl Sides {
    fn of(path: &[u8]) -> Self {
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
    pub(super) fn known_absent(&self, root: &Root) -> bool {
        let known = *self.none.lock().unwrap_or_else(PoisonError::into_inner);
        known.is_some_and(|known| root.facts(&self.dir).is_ok_and(|facts| facts == known))
    }

    /// Notes that there is none, if that is so and the directory has settled: only then would its
    /// times tell of one that is made later.
    pub(super) fn note_if_absent(&self, root: &Root) {
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

/// Entries by key: the path of a request as it came, or `side:` or `page:` and a path beneath the
/// root.
pub(super) struct Cache {
    entries: Option<QuickCache<Box<[u8]>, Arc<Entry>>>,
}

impl Cache {
    /// Room for exactly `files`, none if 0.
    pub(super) fn new(files: usize) -> Self {
        // Each shard holds an equal share, of 32 at least (quick_cache halves their number until it
        // does). Rounding down keeps the sum within the bound.
        let shards = [16, 8, 4, 2]
            .into_iter()
            .find(|shards| files / shards >= 32);
        let shards = shards.unwrap_or(1);
        let files = files - files % shards;
        let options = OptionsBuilder::new()
            .estimated_items_capacity(files)
            .weight_capacity(files as u64)
            .shards(shards)
            .build();
        let entries = options.ok().filter(|_| files > 0).map(|options| {
            let (weighter, hasher, lifecycle) = Default::default();
            QuickCache::with_options(options, weighter, hasher, lifecycle)
        });
        Self { entries }
    }

    /// The entry of `key`, if it is what a look-up would find now. One system call.
    pub(super) fn get(&self, key: &[u8], root: &Root) -> Option<Arc<Entry>> {
        let entries = self.entries.as_ref()?;
        let entry = entries.get(key)?;
        if entry.is_current(root) && !entry.has_settled() {
            return Some(entry);
        }
        // Another thread may have put a newer one there: then that one is looked up again as well.
        entries.remove(key);
        None
    }

    /// The entry of `key`, which may be out of date. No system call.
    pub(super) fn peek(&self, key: &[u8]) -> Option<Arc<Entry>> {
        let entry = self.entries.as_ref()?.get(key)?;
        (!entry.has_settled()).then_some(entry)
    }

    pub(super) fn put(&self, key: &[u8], entry: &Arc<Entry>) {
        if let Some(entries) = self.entries.as_ref().filter(|_| entry.keeps()) {
            entries.insert(key.into(), Arc::clone(entry));
        }
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let len = self.entries.as_ref().map_or(0, QuickCache::len);
        f.debug_struct("Cache")
            .field("len", &len)
            .finish_non_exhaustive()
    }
}
