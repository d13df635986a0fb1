//! Recognizes files whose content the kernel generates while it is read, as in procfs and sysfs.

use std::fs::File;
use std::io::{self, IoSliceMut};

use rustix::io::{Errno, ReadWriteFlags};

use crate::file_stat::FileStat;
use crate::open_file::DiskAccess;

/// Whether the file's metadata makes it worthwhile to call [`is_generated`]: procfs reports a
/// length of 0, and sysfs one page.
pub(super) fn is_suspicious(stat: &FileStat) -> bool {
    stat.is_empty() || stat.len() == rustix::param::page_size() as u64
}

/// Whether the length in `stat`, the metadata of `file`, says nothing about the content: either the
/// file has content although the length is 0, or it ends before that length. Such a file cannot be
/// sent, because a response promises a length before the content is read. It has no validators
/// either, because its times do not change along with its content.
///
/// Reads one byte, and only in this case queries the metadata again, because the file may just have
/// been changed. Fails with [`io::ErrorKind::WouldBlock`] if `access` is
/// [`DiskAccess::CachedOnly`] and the disk is needed.
pub(super) fn is_generated(file: &File, stat: &FileStat, access: DiskAccess) -> io::Result<bool> {
    let flags = match access {
        DiskAccess::CachedOnly => ReadWriteFlags::NOWAIT,
        DiskAccess::MayBlock => ReadWriteFlags::empty(),
    };
    let last = stat.len().saturating_sub(1);
    let read = loop {
        match rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut [0])], last, flags) {
            Ok(read) => break read,
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::AGAIN) if access == DiskAccess::CachedOnly => {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            // Regular files are always readable. This one waits for the kernel to say something.
            Err(Errno::AGAIN) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    };
    let has_last_byte = read > 0;
    Ok(has_last_byte == stat.is_empty() && FileStat::of(file)? == *stat)
}
