//! Open files between requests, never stale.

pub(crate) mod entry;
pub(crate) mod headers;
mod media_type;
mod precompressed;
pub(crate) mod revalidation;

use std::sync::Arc;

use quick_cache::OptionsBuilder;
use quick_cache::sync::Cache as QuickCache;

use self::entry::Entry;

/// Entries by key: the path of a request as it was received, or `precompressed:` or `page:` and a
/// path beneath the root.
pub(crate) struct Cache {
    entries: Option<QuickCache<Box<[u8]>, Arc<Entry>>>,
}

/// The least number of entries in a shard of the cache.
const SHARD_MIN_ENTRIES: usize = 32;

impl Cache {
    /// A cache with room for at most `files` entries, none if 0.
    pub(crate) fn new(files: usize) -> Self {
        // Each shard holds an equal share of at least 32 entries: quick_cache halves the number of
        // shards until that is so. Rounding down keeps the sum within the bound.
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

    /// The entry of `key`, if a look-up would find the same file now. See [`Entry::is_current`] for
    /// the system calls that it makes.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Arc<Entry>> {
        let entries = self.entries.as_ref()?;
        let entry = entries.get(key)?;
        if entry.is_current() && !entry.has_become_stable() {
            return Some(entry);
        }
        // Another thread may have put a newer entry there in between. Then that one is looked up
        // again as well.
        entries.remove(key);
        None
    }

    /// The entry of `key`, which may be out of date. No system call.
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
