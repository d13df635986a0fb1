//! The temporary file of a download, `NAME.part`, until it gets its final name.
//!
//! The bytes of the body go to the temporary file, and are renamed once they are whole, checked and
//! on the disk. So what is under the final name is whole at any moment, even if the process is
//! killed. A lock on the temporary file keeps a second download out; it ends with the process.
//!
//! A body that arrives with its head needs no temporary name, because nothing of it can be worth
//! keeping: it goes to a file without any name, which gets the final one.

mod finisher;
mod identity;
mod names;
mod record;
mod whole;
mod written;

use std::cell::{Cell, RefCell};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use super::error::GetError;
use super::sink::FileSink;
use crate::directory::or_current;

pub(crate) use finisher::Finisher;
pub(crate) use names::Names;
pub(crate) use record::Version;
pub(crate) use written::Written;

use identity::Identity;
use record::{Record, boot_id};
use whole::{Source, Whole};

/// How often the record of a file that is written in several places is replaced. A killed download
/// fetches again what was written since.
const RECORD_INTERVAL: Duration = Duration::from_secs(1);
/// Every how many intervals the file is synced, so that a crash of the machine does not cost more.
const INTERVALS_PER_SYNC: u32 = 10;

/// What a download may do with what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Create a file. When the downloads began, there was no temporary file of its name.
    First,
    /// Create a file.
    New,
    /// Replace a file of the final name.
    Replace,
    /// Go on from the temporary file, and replace a file of the final name.
    Resume,
}

/// A file that is being downloaded. At its temporary name, it is locked until it is dropped.
pub(crate) struct Partial {
    file: RefCell<Arc<File>>,
    /// What identifies the file at the temporary name. `None` if it has no name.
    named: Cell<Option<Identity>>,
    names: Arc<Names>,
    url: String,
    version: RefCell<Version>,
    written: Rc<RefCell<Written>>,
    synced: RefCell<Written>,
    is_preallocated: Cell<bool>,
    has_record: Cell<bool>,
    /// The number of usable bytes that the record describes.
    recorded: Cell<u64>,
}

impl Partial {
    /// Opens a file without a name for `target`, if `kind` and the file system allow it. Otherwise
    /// opens the temporary file, and locks it. With [`Kind::Resume`], keeps the bytes that a
    /// previous download of `url` has left.
    ///
    /// # Errors
    ///
    /// Another download has locked the file, the name belongs to something else, or the file cannot
    /// be created.
    pub(crate) fn open(target: &Path, url: &str, kind: Kind) -> Result<Self, GetError> {
        let names = Arc::new(Names::new(target));
        let unnamed = match kind {
            Kind::First => open_unnamed(&names),
            // What an earlier download has left is taken over, so that it does not stay.
            Kind::New if is_unused(names.temporary()) => open_unnamed(&names),
            Kind::New => None,
            Kind::Replace | Kind::Resume => None,
        };
        let (file, named, len) = match unnamed {
            Some(file) => (file, None, 0),
            None => {
                let (file, metadata) = open_locked(names.temporary())?;
                (file, Some(Identity::of(&metadata)), metadata.len())
            }
        };
        let found = match kind == Kind::Resume && len > 0 {
            true => Record::read(names.record()).filter(|record| record.url == url),
            false => None,
        };
        let partial = Self {
            file: RefCell::new(Arc::new(file)),
            named: Cell::new(named),
            url: url.to_owned(),
            version: RefCell::default(),
            written: Rc::default(),
            synced: RefCell::default(),
            is_preallocated: Cell::new(false),
            has_record: Cell::new(named.is_some() && names.has_record()),
            recorded: Cell::new(0),
            names,
        };
        match found {
            Some(record) if record.version.validator.is_some() => {
                let boot = boot_id();
                if record.boot == boot {
                    *partial.synced.borrow_mut() = record.synced.clone();
                }
                let usable = record.usable(&boot, len);
                partial.adopt(record.version, usable, record.is_preallocated)?;
            }
            _ if len > 0 || partial.has_record.get() => partial.clear()?,
            _ => {}
        }
        Ok(partial)
    }

    /// Exchanges a file without a name for the temporary file: what arrives may be worth keeping.
    /// Forgets all bytes.
    ///
    /// # Errors
    ///
    /// Those of [`Partial::open`], and the final name has been taken since.
    pub(crate) fn use_temporary_name(&self) -> Result<(), GetError> {
        if self.named.get().is_some() {
            return Ok(());
        }
        // What would fail in the end, possibly after hours, need not begin.
        let target = self.names.target();
        if fs::symlink_metadata(target).is_ok() {
            return Err(GetError::Exists(target.to_owned()));
        }
        let (file, metadata) = open_locked(self.names.temporary())?;
        self.file.replace(Arc::new(file));
        self.named.set(Some(Identity::of(&metadata)));
        self.has_record.set(self.names.has_record());
        self.clear()
    }

    /// Goes on from the bytes of a previous download, and removes the others: from now on, the
    /// length of the file has to tell which bytes have been written.
    fn adopt(
        &self,
        version: Version,
        usable: Written,
        is_preallocated: bool,
    ) -> Result<(), GetError> {
        if usable == Written::default() {
            return self.clear();
        }
        if !is_preallocated {
            self.set_len(usable.end())?;
        }
        self.recorded.set(usable.count());
        *self.written.borrow_mut() = usable;
        self.is_preallocated.set(is_preallocated);
        *self.version.borrow_mut() = version;
        Ok(())
    }

    pub(crate) fn version(&self) -> Version {
        self.version.borrow().clone()
    }

    /// Returns which bytes have been written. Those of a file whose version cannot be recognised
    /// are of no use for another request.
    pub(crate) fn usable(&self) -> Written {
        match self.version.borrow().validator {
            Some(_) => self.written.borrow().clone(),
            None => Written::default(),
        }
    }

    /// Returns which bytes have been written.
    pub(crate) fn written(&self) -> Written {
        self.written.borrow().clone()
    }

    /// Returns the number of bytes that have been written.
    pub(crate) fn position(&self) -> u64 {
        self.written.borrow().count()
    }

    /// Returns the length of the whole file, if it is known.
    pub(crate) fn total(&self) -> Option<u64> {
        self.version.borrow().total
    }

    /// Whether all bytes have been written.
    pub(crate) fn is_whole(&self) -> bool {
        let written = self.written.borrow();
        let total = self.version.borrow().total;
        total.is_some_and(|total| written.prefix() == total && written.end() == total)
    }

    pub(crate) fn path(&self) -> &Path {
        self.names.temporary()
    }

    pub(crate) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file.borrow())
    }

    /// Forgets all bytes, and expects those of another version.
    pub(crate) fn restart(&self, version: Version) -> Result<(), GetError> {
        let has_bytes = *self.written.borrow() != Written::default();
        // A record of another version must not describe the bytes that come now.
        if has_bytes || self.is_preallocated.get() || self.has_record.get() {
            self.clear()?;
        }
        *self.version.borrow_mut() = version;
        Ok(())
    }

    /// Sets the length of the whole file, if a later response is the first to tell it.
    pub(crate) fn set_total(&self, total: u64) {
        self.version.borrow_mut().total = Some(total);
    }

    fn clear(&self) -> Result<(), GetError> {
        // The record goes first, because it describes the bytes.
        self.remove_record()?;
        self.set_len(0)?;
        *self.written.borrow_mut() = Written::default();
        *self.synced.borrow_mut() = Written::default();
        *self.version.borrow_mut() = Version::default();
        self.is_preallocated.set(false);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), GetError> {
        let outcome = self.file().set_len(len);
        outcome.map_err(GetError::file("truncate", self.names.temporary()))
    }

    /// Reserves the space of the whole file, so that it can be written in several places.
    pub(crate) fn preallocate(&self, total: u64) -> Result<(), GetError> {
        if self.is_preallocated.replace(true) {
            return Ok(());
        }
        // From now on, the length says nothing about what was written.
        self.record()?;
        let failed = |source| GetError::File {
            what: "reserve space for",
            path: self.names.temporary().to_owned(),
            source,
        };
        match rustix::fs::fallocate(&*self.file(), FallocateFlags::empty(), 0, total) {
            Ok(()) => Ok(()),
            // Not every file system can do it.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.file().set_len(total).map_err(failed),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Returns a sink that writes from a position on.
    pub(crate) fn sink(&self, offset: u64, direct: bool) -> Result<FileSink, GetError> {
        FileSink::new(
            self.file(),
            Arc::clone(&self.names),
            offset,
            Rc::clone(&self.written),
            direct,
        )
    }

    /// Records what the temporary file holds.
    pub(crate) fn record(&self) -> Result<(), GetError> {
        let record = Record {
            url: self.url.clone(),
            version: self.version(),
            boot: boot_id(),
            is_preallocated: self.is_preallocated.get(),
            written: self.written.borrow().clone(),
            synced: self.synced.borrow().clone(),
        };
        record
            .write(self.names.record())
            .map_err(GetError::file("write", self.names.record()))?;
        self.has_record.set(true);
        self.recorded.set(self.usable().count());
        Ok(())
    }

    fn remove_record(&self) -> Result<(), GetError> {
        if self.has_record.replace(false) {
            match fs::remove_file(self.names.record()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(GetError::file("remove", self.names.record())(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Replaces the record from time to time, and syncs the file before every tenth time. Ends only
    /// if that fails.
    ///
    /// # Cancellation
    ///
    /// The future can be dropped at any time. A sync that has begun goes on and changes nothing.
    pub(crate) async fn keep_records(&self) -> GetError {
        loop {
            for _ in 0..INTERVALS_PER_SYNC {
                tokio::time::sleep(RECORD_INTERVAL).await;
                if self.is_preallocated.get()
                    && let Err(error) = self.record()
                {
                    return error;
                }
            }
            let written = self.written.borrow().clone();
            let file = self.file();
            let synced = tokio::task::spawn_blocking(move || file.sync_data()).await;
            if let Ok(Err(error)) = synced {
                return GetError::file("sync", self.names.temporary())(error);
            }
            if synced.is_ok() {
                *self.synced.borrow_mut() = written;
                if let Err(error) = self.record() {
                    return error;
                }
            }
        }
    }

    /// Syncs the whole file, gives it its final name, and calls `done` with the outcome.
    ///
    /// # Errors
    ///
    /// A file operation fails, the file was exchanged, or without `replace` there is a file of that
    /// name.
    pub(crate) fn finish(
        self: &Rc<Self>,
        finisher: &Finisher,
        replace: bool,
        done: impl FnOnce(Result<(), GetError>) + 'static,
    ) {
        if let Some(time) = self.version.borrow().modified() {
            // The time only tells a later -c whether the file has changed.
            let _ = self.file().set_modified(time);
        }
        let source = match self.named.get() {
            None => Source::Unnamed,
            Some(identity) => Source::Temporary {
                identity,
                len: self.written.borrow().end(),
                replace,
            },
        };
        let whole = Whole {
            file: self.file(),
            names: Arc::clone(&self.names),
            source,
        };
        let partial = Rc::clone(self);
        finisher.finish(whole, move |outcome| {
            done(outcome.and_then(|()| partial.remove_record()));
        });
    }

    /// Ends a download that failed. Returns the number of bytes from which `-c` can go on. If there
    /// are none, removes the file.
    pub(crate) fn abandon(&self, is_sound: bool) -> Option<u64> {
        if is_sound && let Some(count) = self.resumable() {
            return Some(count);
        }
        // The failure that led here is the one to report.
        let _ = self.remove_record();
        let temporary = self.names.temporary();
        if self
            .named
            .get()
            .is_some_and(|identity| identity.is_at(temporary))
        {
            let _ = fs::remove_file(temporary);
        }
        None
    }

    fn resumable(&self) -> Option<u64> {
        self.named.get()?;
        let usable = self.usable().count();
        let count = match self.record() {
            Ok(()) => usable,
            // A full disk has no room for a new record. The last one is still right: without
            // reserved space, the length of the file tells what was written since.
            Err(_) if !self.has_record.get() => return None,
            Err(_) if self.is_preallocated.get() => self.recorded.get(),
            Err(_) => usable,
        };
        (count > 0).then_some(count)
    }
}

/// Removes the record of a download that was killed after its file had got its final name.
pub(crate) fn remove_stale_record(target: &Path) {
    let names = Names::new(target);
    if fs::symlink_metadata(names.temporary()).is_err() {
        // It does no harm if it stays.
        let _ = fs::remove_file(names.record());
    }
}

fn is_unused(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Opens a file without a name in the directory of the target. `None` if the file system cannot do
/// it.
fn open_unnamed(names: &Names) -> Option<File> {
    let directory = or_current(names.target().parent()?);
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true);
    options.custom_flags(OFlags::TMPFILE.bits() as i32);
    options.open(directory).ok()
}

/// Opens or creates a temporary file, and locks it. Never follows a link.
fn open_locked(path: &Path) -> Result<(File, Metadata), GetError> {
    loop {
        let mut options = fs::OpenOptions::new();
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        options.read(true).write(true).create(true).truncate(false);
        options.custom_flags(flags.bits() as i32);
        let file = match options.open(path) {
            Ok(file) => file,
            Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
                return Err(GetError::NotOurs(path.to_owned()));
            }
            Err(error) => return Err(GetError::file("create", path)(error)),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(GetError::Busy(path.to_owned())),
            Err(errno) => return Err(GetError::file("lock", path)(errno.into())),
        }
        let metadata = file.metadata().map_err(GetError::file("examine", path))?;
        // Between opening and locking, another download may have given the file its final name.
        if !Identity::of(&metadata).is_at(path) {
            continue;
        }
        // A second name would show the bytes before they are whole.
        if !metadata.is_file() || metadata.nlink() > 1 {
            return Err(GetError::NotOurs(path.to_owned()));
        }
        return Ok((file, metadata));
    }
}

/// Whether bytes are written to a path directly, because it is a pipe or a device.
pub(crate) fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| {
        let kind = metadata.file_type();
        kind.is_char_device() || kind.is_block_device() || kind.is_fifo() || kind.is_socket()
    })
}
