//! What the file system of a path can do.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;
use serde::Serialize;
use uncopied::arena::PageBuffer;
use uncopied::{Errno, Mechanism};

use super::cause::{name, refused};
use super::finding::{Finding, Status};
use super::process::Process;
use super::trial::{Refusal, TRIAL_BYTES, file};
use crate::error::{Error, kernel_text};

/// A path, with the keys of `--json`.
#[derive(Debug, Serialize)]
pub(super) struct PathReport {
    pub(super) path: String,
    /// The type of the file system, such as `ext4`.
    pub(super) file_system: Option<String>,
    pub(super) mount_point: Option<String>,
    pub(super) source: Option<String>,
    /// What is special about this type of file system.
    pub(super) note: Option<&'static str>,
    /// What was sent: `temporary_file`, `file`, or `nothing`.
    pub(super) tried_with: TriedWith,
    /// Why nothing was tried.
    pub(super) obstacle: Option<String>,
    pub(super) checks: Vec<Check>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TriedWith {
    TemporaryFile,
    File,
    Nothing,
}

/// Something that was tried on a file.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) key: &'static str,
    #[serde(flatten)]
    pub(super) finding: Finding,
}

/// The file that is sent.
enum Subject {
    /// A temporary file, which may be written to.
    Temporary(File),
    /// The file that was named, which is only read.
    Named(File),
    /// None, for the reason given.
    None(String),
}

impl PathReport {
    /// Probes a path.
    ///
    /// # Errors
    ///
    /// It cannot be opened, or is neither a directory nor a regular file.
    pub(super) fn of(path: &Path, process: &Process) -> Result<Self, Error> {
        let failed = |source| Error::ProbePath {
            path: path.display().to_string(),
            source,
        };
        // O_PATH needs no permission for the file itself, and waits for no reader of a FIFO.
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(OFlags::PATH.bits() as i32);
        let place = options.open(path).map_err(failed)?;
        let kind = place.metadata().map_err(failed)?.file_type();
        let subject = if kind.is_dir() {
            temporary(path)
        } else if kind.is_file() {
            let file = File::open(descriptor_path(&place)).map_err(failed)?;
            match file.read_at(&mut [0], 0) {
                Ok(0) => Subject::None("the file is empty, so there is nothing to send".into()),
                Ok(_) => Subject::Named(file),
                Err(error) => return Err(failed(error)),
            }
        } else {
            let why = "it is neither a directory nor a regular file";
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, why)));
        };
        let mount = Mount::of(&place);
        let (tried_with, obstacle, checks) = match subject {
            Subject::Temporary(file) => {
                (TriedWith::TemporaryFile, None, checks(&file, true, process))
            }
            Subject::Named(file) => (TriedWith::File, None, checks(&file, false, process)),
            Subject::None(why) => (TriedWith::Nothing, Some(why), Vec::new()),
        };
        let kind = mount.as_ref().map(|mount| mount.kind.clone());
        Ok(Self {
            path: path.display().to_string(),
            note: kind.as_deref().and_then(note),
            file_system: kind,
            mount_point: mount.as_ref().map(|mount| mount.point.clone()),
            source: mount.map(|mount| mount.source),
            tried_with,
            obstacle,
            checks,
        })
    }
}

/// Creates a file without a name in this directory, and fills it.
fn temporary(directory: &Path) -> Subject {
    let file = tempfile::tempfile_in(directory).and_then(|file| file::fill(&file).map(|()| file));
    match file {
        Ok(file) => Subject::Temporary(file),
        Err(error) => Subject::None(format!(
            "no temporary file can be created here ({}): name a file that can be read",
            kernel_text(&error)
        )),
    }
}

/// The path by which an open file can be opened again, with other flags.
fn descriptor_path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Tries everything with this file.
fn checks(file: &File, is_temporary: bool, process: &Process) -> Vec<Check> {
    let mut checks: Vec<_> = [
        ("sendfile", Mechanism::Sendfile),
        ("splice", Mechanism::Splice),
        ("mmap", Mechanism::MmapWrite),
    ]
    .into_iter()
    .map(|(key, mechanism)| Check {
        key,
        finding: match file::send(file, mechanism) {
            Ok(bytes) => Finding::yes(format!("sent {bytes} bytes")),
            Err(refusal) => of_this_file(refused(mechanism, &refusal, process), &refusal),
        },
    })
    .collect();
    checks.push(Check {
        key: "o_direct",
        finding: direct(file),
    });
    if let Some(finding) = shares_pages(file, is_temporary, &checks, process) {
        checks.push(Check {
            key: "shared_pages",
            finding,
        });
    }
    checks
}

/// What one file system does not support, another one may.
fn of_this_file(finding: Finding, refusal: &Refusal) -> Finding {
    match refusal {
        Refusal::Errno(errno @ (Errno::INVAL | Errno::OPNOTSUPP | Errno::NODEV | Errno::SPIPE)) => {
            Finding::no(format!(
                "this file system does not support it ({})",
                name(*errno)
            ))
            .or("a file on another file system, such as ext4, xfs or tmpfs")
        }
        _ => finding,
    }
}

/// Whether the socket gets the pages of the page cache, so that changes to the file reach the peer.
/// Returns `None` if that cannot be tried, because the file must not be changed.
fn shares_pages(
    file: &File,
    is_temporary: bool,
    checks: &[Check],
    process: &Process,
) -> Option<Finding> {
    let sends = |key| {
        let mut checks = checks.iter();
        checks.any(|check| check.key == key && check.finding.status == Status::Yes)
    };
    let mechanism = match (sends("sendfile"), sends("splice")) {
        (true, _) => Mechanism::Sendfile,
        (false, true) => Mechanism::Splice,
        (false, false) => return None,
    };
    if !is_temporary {
        return None;
    }
    Some(match file::pages(file, mechanism) {
        Ok(file::Pages::Shared) => Finding::yes(
            "the socket takes references to the page cache: until the peer has the bytes, changes \
             to the file reach it",
        ),
        Ok(file::Pages::Copied) => Finding::no(
            "the file system copies the bytes before it sends them: no copy is saved here",
        ),
        Err(refusal) => refused(mechanism, &refusal, process),
    })
}

/// Reads past the page cache.
fn direct(file: &File) -> Finding {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .custom_flags(OFlags::DIRECT.bits() as i32);
    let read = || {
        let direct = options.open(descriptor_path(file))?;
        // Aligned to whole pages, as O_DIRECT needs.
        let mut buffer = PageBuffer::with_capacity(TRIAL_BYTES)?;
        direct.read_at(buffer.spare_mut(), 0)
    };
    match read() {
        Ok(bytes) => Finding::yes(format!("read {bytes} bytes")),
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            Finding::no("this file system does not support it (EINVAL)")
                .or("a file on another file system, such as ext4 or xfs")
        }
        Err(error) => Finding::no(format!("reading failed: {}", kernel_text(&error))),
    }
}

/// What is mounted where a file is.
struct Mount {
    kind: String,
    point: String,
    source: String,
}

impl Mount {
    /// Looks a file's mount up. Returns `None` without /proc.
    fn of(file: &File) -> Option<Self> {
        let number = file.as_fd().as_raw_fd();
        let about = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).ok()?;
        let mut lines = about.lines();
        let id = lines.find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let mut mounts = mounts.lines();
        mounts.find_map(|line| Self::parse(line, id))
    }

    /// Parses a line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)), if it has this number:
    /// `36 35 98:0 /root /mount options optional… - type source options`.
    fn parse(line: &str, id: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ');
        let mut file_system = file_system.split(' ');
        if mount.next() != Some(id) {
            return None;
        }
        Some(Self {
            kind: file_system.next()?.to_owned(),
            point: mount.nth(3)?.to_owned(),
            source: file_system.next()?.to_owned(),
        })
    }
}

/// What is special about a type of file system.
fn note(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "overlay" => {
            "files come from the layers below, and so do their pages; a file of a lower layer is \
             copied when it is first written to, and descriptors that were opened before keep the \
             old one"
        }
        kind if kind.starts_with("fuse") => {
            "a program in user space supplies the bytes; the kernel caches them, unless that \
             program wants direct I/O: then each read goes to it, and pages are not shared"
        }
        "nfs" | "nfs4" | "cifs" | "smb3" | "ceph" | "9p" | "afs" | "lustre" | "glusterfs"
        | "virtiofs" => {
            "a network file system: bytes that are not cached come over the network first, and \
             other machines may change them while they are being sent"
        }
        "tmpfs" | "ramfs" | "devtmpfs" => "the files are in memory, in the page cache itself",
        "zfs" => "it has a cache of its own, from which bytes are copied into the page cache",
        "proc" | "sysfs" | "debugfs" | "tracefs" | "cgroup2" | "configfs" => {
            "the contents are made when they are read: there are no pages to share"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let line = r"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=x";
        let mount = Mount::parse(line, "36").expect("the number fits");
        assert_eq!(mount.kind, "ext3");
        assert_eq!(mount.point, r"/mnt\0402");
        assert_eq!(mount.source, "/dev/root");
        assert!(Mount::parse(line, "3").is_none());
        assert!(Mount::parse("36 35", "36").is_none());
        assert!(Mount::parse("36 35 - ", "36").is_none());
    }

    #[test]
    fn unusual_file_systems_are_explained() {
        for kind in ["overlay", "fuse.sshfs", "fuseblk", "nfs4", "9p", "proc"] {
            assert!(note(kind).is_some(), "{kind}");
        }
        assert_eq!(note("ext4"), None);
    }
}
