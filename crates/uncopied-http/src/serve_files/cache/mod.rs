//! Keeps files open between requests, and checks on each request that the requested file is still
//! current.

pub(crate) mod entry;
pub(crate) mod headers;
mod media_type;
mod precompressed;
pub(crate) mod revalidation;

use std::sync::Arc;

use quick_cache::OptionsBuilder;
use quick_cache::sync::Cache as QuickCache;

use self::entry::Entry;

/// The open files, by key. The key of a file is the request path as it was received. For
/// precompressed files and configured pages, the key is `precompressed:` or `page:` followed by the
/// path beneath the root.
pub(crate) struct Cache {
    entries: Option<QuickCache<Box<[u8]>, Arc<Entry>>>,
}

/// The minimum number of entries in a shard of the cache.
const SHARD_MIN_ENTRIES: usize = 32;

impl Cache {
    /// Creates a cache with room for at most `files` entries. If `files` is 0, nothing is cached.
    pub(crate) fn new(files: usize) -> Self {
        // Make sure that the shards together hold no more than `files` entries. quick_cache gives
        // every shard the same number of entries, and halves the number of shards until each has at
        // least 32 entries. So choose a number of shards that needs no halving, and round `files`
        // down to a multiple of that number.
        let shards = [16, 8, 4, 2]
            .into_iter()
            .find(|shards| files / shards >= SHARD_MIN_ENTRIES);
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

    /// Returns the entry under `key` if it is current, that is, if looking up the path now would
    /// find the same, unchanged file. Removes the entry if it is out of date. For the system calls
    /// that this makes, see [`Entry::is_current`].
    pub(crate) fn get(&self, key: &[u8]) -> Option<Arc<Entry>> {
        let entries = self.entries.as_ref()?;
        let entry = entries.get(key)?;
        if entry.is_current() && !entry.has_become_stable() {
            return Some(entry);
        }
        // This may remove a newer entry that another thread has just stored. That does no harm: the
        // next request only has to open the file again.
        entries.remove(key);
        None
    }

    /// Returns the entry under `key`, which may be out of date. Returns `None` for an entry that
    /// must be replaced anyway; see [`Entry::has_become_stable`]. Makes no system call.
    pub(crate) fn peek(&self, key: &[u8]) -> Option<Arc<Entry>> {
        let entry = self.entries.as_ref()?.get(key)?;
        (!entry.has_become_stable()).then_some(entry)
    }

    pub(crate) fn put(&self, key: &[u8], entry: &Arc<Entry>) {
        if let Some(entries) = self.entries.as_ref().filter(|_| entry.is_cacheable()) {
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
