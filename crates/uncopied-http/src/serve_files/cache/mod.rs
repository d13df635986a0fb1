//! Keeps files open between requests, and checks on each request that the requested file is still
//! current.

pub(crate) mod entry;
pub(crate) mod headers;
pub(crate) mod media_type;
mod precompressed;
pub(crate) mod revalidation;

use std::sync::Arc;

use quick_cache::sync::Cache as QuickCache;
use quick_cache::{OptionsBuilder, Weighter};

use self::entry::Entry;
use crate::serve_files::resolve::checked_path::QueriedDirs;

/// The open files, by key. The key of a file is the request path as it was received. For
/// precompressed files and configured pages, the key is `precompressed:` or `page:` followed by the
/// path beneath the root.
pub(crate) struct Cache {
    entries: Option<QuickCache<Box<[u8]>, Arc<Entry>, Weights>>,
}

/// How much the cache may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheLimits {
    /// The number of files that are kept open.
    pub(crate) open_files: usize,
    /// The number of bytes that files in memory take up.
    pub(crate) memory: u64,
}

/// The weight of everything that the cache may hold. An open file takes a share of
/// `1 / open_files`, and a file in memory takes the share that its bytes are of `memory`. So
/// neither limit is exceeded, however the files are mixed.
const CAPACITY: u64 = 1 << 40;

/// The minimum number of the largest entries for which a shard of the cache has room.
const SHARD_MIN_ENTRIES: u64 = 32;

/// What an entry takes up in addition to the bytes of its file, in bytes: its key, its headers, and
/// its place in the cache.
const ENTRY_BYTES: u64 = 1024;

#[derive(Clone, Debug)]
struct Weights {
    open_file: u64,
    memory: u64,
}

impl Weights {
    fn new(limits: CacheLimits) -> Self {
        Self {
            // The largest weight of which `open_files + 1` do not fit. quick_cache does not admit
            // an entry that takes up nearly all of the capacity.
            open_file: CAPACITY / (limits.open_files as u64 + 1) + 1,
            memory: limits.memory.max(1),
        }
    }

    fn of_bytes(&self, bytes: u64) -> u64 {
        let share = u128::from(bytes) * u128::from(CAPACITY) / u128::from(self.memory);
        u64::try_from(share).unwrap_or(u64::MAX).max(1)
    }
}

impl Weighter<Box<[u8]>, Arc<Entry>> for Weights {
    fn weight(&self, key: &Box<[u8]>, entry: &Arc<Entry>) -> u64 {
        match entry.file.in_memory() {
            Some(bytes) => self.of_bytes(ENTRY_BYTES + key.len() as u64 + bytes.len() as u64),
            None => self.open_file,
        }
    }
}

impl Cache {
    /// Creates a cache. If `limits.open_files` is 0, nothing is cached. `in_memory_max_bytes` is
    /// the length of the longest file that is kept in memory.
    pub(crate) fn new(limits: CacheLimits, in_memory_max_bytes: u64) -> Self {
        let weights = Weights::new(limits);
        // Each shard has its own part of the capacity, and does not admit an entry that is too
        // heavy for it. So choose a number of shards for which each has room for some of
        // the heaviest entries.
        let in_memory = weights.of_bytes(ENTRY_BYTES + in_memory_max_bytes);
        let heaviest = weights.open_file.max(in_memory);
        let shards = [16, 8, 4, 2]
            .into_iter()
            .find(|shards| CAPACITY / shards >= SHARD_MIN_ENTRIES.saturating_mul(heaviest));
        let shards = shards.unwrap_or(1);
        let items = limits.open_files as u64 + limits.memory / (8 * ENTRY_BYTES);
        let options = OptionsBuilder::new()
            .estimated_items_capacity(usize::try_from(items).unwrap_or(usize::MAX))
            .weight_capacity(CAPACITY)
            .shards(shards as usize)
            .build();
        let options = options.ok().filter(|_| limits.open_files > 0);
        let entries = options.map(|options| {
            let (hasher, lifecycle) = Default::default();
            QuickCache::with_options(options, weights, hasher, lifecycle)
        });
        Self { entries }
    }

    /// Returns the entry under `key` if it is current, that is, if looking up the path now would
    /// find the same, unchanged file. Removes the entry if it is out of date. For the system calls
    /// that this makes, see [`Entry::is_current`].
    pub(crate) fn get(&self, key: &[u8]) -> Option<Arc<Entry>> {
        let entries = self.entries.as_ref()?;
        let entry = entries.get(key)?;
        if entry.is_current(&mut QueriedDirs::default()) && !entry.has_become_stable() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_limit_is_exceeded_however_the_files_are_mixed() {
        let limits = CacheLimits {
            open_files: 100,
            memory: 10 << 20,
        };
        let weights = Weights::new(limits);
        assert!(100 * weights.open_file <= CAPACITY);
        assert!(101 * weights.open_file > CAPACITY);
        assert_eq!(weights.of_bytes(10 << 20), CAPACITY);
        let mixed = 50 * weights.open_file + weights.of_bytes(5 << 20);
        assert!(mixed <= CAPACITY && mixed > CAPACITY / 100 * 99);
    }
}
