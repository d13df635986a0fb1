//! The thread that reads the pages of mapped files that code accesses.
//!
//! A process has one such thread. It is started with the first mapping and never stopped, and it is
//! idle unless code reads the bytes of a mapping. Because readers wait for this thread, it receives
//! no signals, and takes no lock that a thread may hold while it reads a mapping.
//!
//! It reads files in the order of the accesses, so a file on a disk that does not respond delays
//! the readers of all mappings. The process is aborted if the thread panics, or if something has
//! closed its descriptor: otherwise, readers would wait forever, or read zeroes.

use std::collections::BTreeMap;
use std::fs::File;
use std::process;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use rustix::io::{Errno, Result};

use super::MappedFileRange;
use crate::arena::service_thread::{self, StartedOnce};
use crate::arena::space::Granules;
use crate::sys::Userfault;
use crate::sys::fork::{OwnerProcess, PerProcess};

const THREAD_NAME: &str = "uncopied-reads";

/// The most bytes that are read for one access. Most code that reads one page goes on to the pages
/// after it, and waking this thread for each page would take longer than reading it.
const READ_BYTES: usize = 64 << 10;

/// The delay before the thread tries again to allocate memory.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// The reader of this process. A forked child process starts its own.
static PAGE_READER: PerProcess<StartedOnce<PageReader>> = PerProcess::new();

/// The thread, and the mappings whose pages it reads.
#[derive(Debug)]
pub(super) struct PageReader {
    userfault: Userfault,
    owner_process: OwnerProcess,
    /// The mappings, by their first address.
    mappings: Mutex<BTreeMap<usize, Weak<MappedFileRange>>>,
}

impl PageReader {
    /// Returns the reader of this process. The first call starts the thread.
    ///
    /// # Errors
    ///
    /// The errno with which opening the userfaultfd or starting the thread failed. The next call
    /// tries again.
    pub(super) fn of_this_process() -> Result<&'static Self> {
        PAGE_READER.get().get_or_start(Self::start)
    }

    /// The descriptor reports only accesses by user code, even where this process may have more, so
    /// that what works does not depend on privileges. With the other kind, `mlockall(2)` would read
    /// every mapped file. Kernels before 5.11 have only the other kind.
    fn start() -> Result<&'static Self> {
        let userfault = Userfault::open_user_mode_only().or_else(|_| Userfault::open())?;
        let reader = Self {
            userfault,
            owner_process: OwnerProcess::current(),
            mappings: Mutex::new(BTreeMap::new()),
        };
        service_thread::spawn(THREAD_NAME, reader, Self::run)
    }

    /// Whether the reader belongs to the calling process. A forked child has only a copy of it,
    /// without the thread.
    pub(super) fn is_of_this_process(&self) -> bool {
        self.owner_process.is_current()
    }

    /// Makes code that accesses `granules` wait for this thread. They must not be readable yet:
    /// otherwise `mlockall(2)` in another thread could fill them with zeroes before that.
    pub(super) fn prepare(&self, granules: &Granules) -> Result<()> {
        self.userfault
            .register_unfilled(granules.address(), granules.len())
    }

    pub(super) fn register(&self, address: usize, mapping: &Arc<MappedFileRange>) {
        self.mappings().insert(address, Arc::downgrade(mapping));
    }

    pub(super) fn unregister(&self, address: usize) {
        // A forked child must not take the lock, which another thread of its parent may have held
        // during the fork. The child's copy of the list is not used.
        if self.is_of_this_process() {
            self.mappings().remove(&address);
        }
    }

    fn mappings(&self) -> MutexGuard<'_, BTreeMap<usize, Weak<MappedFileRange>>> {
        // A poisoned lock may still be used: each change is a single call, so a panic cannot have
        // left the list inconsistent.
        self.mappings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut buffer = vec![0; READ_BYTES.max(rustix::param::page_size())];
        loop {
            match self.userfault.next_fault(None) {
                Ok(Some(page)) => self.handle_fault(page, &mut buffer),
                Ok(None) => {}
                Err(errno) => {
                    eprintln!("uncopied: can no longer read page faults ({errno}); aborting");
                    process::abort();
                }
            }
        }
    }

    /// Gives content to the page at address `page`, and wakes the threads that wait for it.
    fn handle_fault(&self, page: usize, buffer: &mut [u8]) {
        match self.mapping_at(page) {
            Some(mapping) => self.fill(&mapping, page, buffer),
            // The mapping has been dropped, so no code has a slice of it. Something else accessed
            // the page, such as a debugger.
            None => self.wake(page),
        }
    }

    /// Reads the page at address `page`, and those after it, from the file.
    fn fill(&self, mapping: &MappedFileRange, page: usize, buffer: &mut [u8]) {
        let page_bytes = rustix::param::page_size();
        let start = page - mapping.granules.address();
        let wanted = mapping.len.saturating_sub(start).min(buffer.len());
        let offset = mapping.offset + start as u64;
        let read = read_until_end(&mapping.file, &mut buffer[..wanted], offset);
        // Fill only pages all of whose bytes were read. If there is none, the accessed page itself
        // must be filled nevertheless, because a thread waits for it.
        let mut filled = match read {
            _ if read == wanted => wanted.next_multiple_of(page_bytes),
            _ => read / page_bytes * page_bytes,
        };
        if filled == 0 {
            // Must come before the page is filled, so that the thread that reads it knows.
            mapping.missing_bytes.note_read();
            filled = page_bytes;
        }
        buffer[read.min(filled)..filled].fill(0);
        // Must come before the page is filled, so that the count includes what a thread has read.
        mapping.read_bytes.fetch_add(filled, Ordering::Relaxed);
        loop {
            // SAFETY: the page belongs to the mapping, whose granules `prepare` has registered. The
            // pages after it do, too: what is filled ends at the latest with the page that contains
            // the mapping's last byte.
            #[allow(unsafe_code)]
            match unsafe { self.userfault.fill(page, &buffer[..filled]) } {
                // If a page after the accessed one had content already, that and those after it
                // were not filled.
                Ok(bytes) => {
                    let rest = filled.saturating_sub(bytes);
                    mapping.read_bytes.fetch_sub(rest, Ordering::Relaxed);
                    return;
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::NOMEM) => thread::sleep(RETRY_INTERVAL),
                // An earlier access has already filled the page.
                Err(_) => {
                    mapping.read_bytes.fetch_sub(filled, Ordering::Relaxed);
                    return self.wake(page);
                }
            }
        }
    }

    fn wake(&self, page: usize) {
        // Waking fails only for an invalid range of addresses, which cannot occur here.
        let _ = self.userfault.wake(page, rustix::param::page_size());
    }

    fn mapping_at(&self, address: usize) -> Option<Arc<MappedFileRange>> {
        let mappings = self.mappings();
        let (_, mapping) = mappings.range(..=address).next_back()?;
        let mapping = mapping.upgrade()?;
        // Must come first: if `mapping` has become the last handle, dropping it takes the same
        // lock, and would wait forever.
        drop(mappings);
        let granules = &mapping.granules;
        let end = granules.address() + granules.len();
        (address < end).then_some(mapping)
    }
}

/// Reads from a file until `buffer` is full, the file ends, or an error occurs. Returns the number
/// of bytes read.
fn read_until_end(file: &File, buffer: &mut [u8], offset: u64) -> usize {
    let mut read = 0;
    while read < buffer.len() {
        match rustix::io::pread(file, &mut buffer[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    read
}
