//! Keeps files open between requests, and checks at each request that they are current.

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
    /// Creates a cache with room for at most `files` entries. With 0, nothing is cached.
    pub(crate) fn new(files: usize) -> Self {
        // quick_cache gives every shard the same number of entries, and halves the number of shards
        // until there are at least 32 entries in each. So choose a number of shards that needs no
        // halving, and round `files` down to a multiple of it, so that the total does not exceed
        // the limit.
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

    /// Returns the entry of `key` if it is current: a look-up of the path would find the same,
    /// unchanged file now. [`Entry::is_current`] describes the system calls that this makes. An
    /// entry that is out of date is removed.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Arc<Entry>> {
        let entries = self.entries.as_ref()?;
        let entry = entries.get(key)?;
        if entry.is_current() && !entry.has_become_stable() {
            return Some(entry);
        }
        // If another thread has just put a newer entry there, this removes the newer one. That
        // costs only one more look-up of the file.
        entries.remove(key);
        None
    }

    /// Returns the entry of `key`, which may be out of date. Makes no system call.
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
