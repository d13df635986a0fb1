//! Opens paths beneath one directory, and never outside of it.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use http::StatusCode;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::file_stat::Facts;
use crate::open_file::Wait;

/// How often an open is tried again that a concurrent rename spoilt, or a signal.
const TRIES: usize = 16;

/// Why there is no file to answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The disk would be needed, and the caller may not wait for it.
    WouldBlock,
    /// The answer is this status.
    Status(StatusCode),
}

impl From<StatusCode> for Stop {
    fn from(status: StatusCode) -> Self {
        Self::Status(status)
    }
}

impl Stop {
    pub(crate) const NOT_FOUND: Self = Self::Status(StatusCode::NOT_FOUND);

    /// What an error of opening, asking about or reading a file means for the request.
    ///
    /// | errno | answer |
    /// |---|---|
    /// | EAGAIN, and the caller may not wait | try again where one may |
    /// | ENOENT, ENOTDIR | 404 |
    /// | EXDEV (`RESOLVE_BENEATH`), ELOOP, ENAMETOOLONG, EILSEQ | 404 |
    /// | ENXIO, ENODEV (a socket, a device without a driver) | 404 |
    /// | EACCES, EPERM | 403 |
    /// | EMFILE, ENFILE, ENOMEM, EAGAIN, EBUSY (it is being written) | 503: it may work a second later |
    /// | any other | 500 |
    pub(crate) fn of(error: &io::Error, wait: Wait) -> Self {
        if error.kind() == io::ErrorKind::WouldBlock && wait == Wait::Never {
            return Self::WouldBlock;
        }
        Self::Status(match Errno::from_io_error(error) {
            Some(
                Errno::NOENT
                | Errno::NOTDIR
                | Errno::XDEV
                | Errno::LOOP
                | Errno::NAMETOOLONG
                | Errno::ILSEQ
                | Errno::NXIO
                | Errno::NODEV,
            ) => StatusCode::NOT_FOUND,
            Some(Errno::ACCESS | Errno::PERM) => StatusCode::FORBIDDEN,
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN | Errno::BUSY) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        })
    }
}

/// Which symbolic links are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// Those that stay beneath the root.
    Beneath,
    /// All.
    Anywhere,
}

/// A directory, opened once, beneath which everything is looked up.
#[derive(Debug)]
pub(crate) struct Root {
    dir: OwnedFd,
    links: Links,
    openat2: bool,
}

impl Root {
    pub(crate) fn open_dir(path: &Path, links: Links) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self {
            dir,
            links,
            openat2: has_openat2(),
        })
    }

    /// Asks about what `path` leads to. One system call; links are followed wherever they lead, so
    /// the answer is only good for a comparison with what [`Root::open`] found.
    pub(crate) fn facts(&self, path: &CStr) -> io::Result<Facts> {
        Facts::at(&self.dir, path, AtFlags::NO_AUTOMOUNT)
    }

    /// Whether there is nothing by the name of `path`, not even a link. One system call.
    pub(crate) fn has_no(&self, path: &CStr) -> bool {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let asked = Facts::at(&self.dir, path, flags);
        asked.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Opens `path` for reading, whatever it is: the caller asks what it got.
    ///
    /// `O_NONBLOCK` keeps a FIFO without a writer from blocking the thread, `O_NOCTTY` a terminal
    /// from becoming ours.
    pub(crate) fn open(&self, path: &CStr, wait: Wait) -> Result<File, Stop> {
        for _ in 0..TRIES {
            let opened = match (self.openat2, wait) {
                (true, _) => self.resolve(path, wait),
                // Only openat2 can be told to look at nothing but the cache.
                (false, Wait::Never) => return Err(Stop::WouldBlock),
                (false, Wait::ForDisk) => self.walk(path),
            };
            match opened {
                Ok(file) => return Ok(file.into()),
                Err(Errno::INTR) => {}
                // A rename or mount elsewhere kept the kernel from proving that the path stays
                // beneath the root. It asks for another try.
                Err(Errno::AGAIN) if wait == Wait::ForDisk => {}
                // Before Linux 5.12 there is no RESOLVE_CACHED.
                Err(Errno::INVAL) if wait == Wait::Never => return Err(Stop::WouldBlock),
                Err(errno) => return Err(Stop::of(&errno.into(), wait)),
            }
        }
        Err(StatusCode::SERVICE_UNAVAILABLE.into())
    }

    fn resolve(&self, path: &CStr, wait: Wait) -> rustix::io::Result<OwnedFd> {
        let mut resolve = ResolveFlags::NO_MAGICLINKS;
        if self.links == Links::Beneath {
            resolve |= ResolveFlags::BENEATH;
        }
        if wait == Wait::Never {
            resolve |= ResolveFlags::CACHED;
        }
        rustix::fs::openat2(&self.dir, path, FILE, Mode::empty(), resolve)
    }

    /// The way without openat2: name by name, and no link is followed unless all are. `path` has no
    /// `..` in it, so what no link leads away stays beneath the root.
    fn walk(&self, path: &CStr) -> rustix::io::Result<OwnedFd> {
        if self.links == Links::Anywhere {
            return rustix::fs::openat(&self.dir, path, FILE, Mode::empty());
        }
        let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = path.to_bytes();
        let (parents, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], path),
        };
        let mut at: Option<OwnedFd> = None;
        for parent in parents
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
        {
            let from = at.as_ref().map_or(self.dir.as_fd(), AsFd::as_fd);
            at = Some(rustix::fs::openat(from, parent, step, Mode::empty())?);
        }
        let from = at.as_ref().map_or(self.dir.as_fd(), AsFd::as_fd);
        rustix::fs::openat(from, name, FILE | OFlags::NOFOLLOW, Mode::empty())
    }
}

const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC)
    .union(OFlags::LARGEFILE);

/// Whether this process may call openat2, learned by trying once. Kernels before 5.6 answer ENOSYS,
/// some seccomp filters EPERM.
fn has_openat2() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let tried = rustix::fs::openat2(CWD, c"/", flags, Mode::empty(), ResolveFlags::empty());
        !matches!(tried, Err(Errno::NOSYS | Errno::PERM))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree() -> tempfile::TempDir {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(outer.path().join("secret"), "secret").unwrap();
        std::fs::write(root.join("a/b/file"), "inside").unwrap();
        symlink("a/b/file", root.join("inner")).unwrap();
        symlink("a", root.join("inner-dir")).unwrap();
        symlink("../secret", root.join("outer")).unwrap();
        symlink("../..", root.join("a/up")).unwrap();
        outer
    }

    fn root(outer: &tempfile::TempDir, links: Links, openat2: bool) -> Root {
        let mut root = Root::open_dir(&outer.path().join("root"), links).unwrap();
        root.openat2 &= openat2;
        root
    }

    fn read(root: &Root, path: &CStr) -> Result<String, Stop> {
        let mut text = String::new();
        root.open(path, Wait::ForDisk)?
            .read_to_string(&mut text)
            .unwrap();
        Ok(text)
    }

    #[test]
    fn links_beneath_the_root_are_followed_and_others_are_not_found() {
        let outer = tree();
        let root = root(&outer, Links::Beneath, true);
        assert_eq!(read(&root, c"a/b/file").unwrap(), "inside");
        assert_eq!(read(&root, c"inner").unwrap(), "inside");
        assert_eq!(read(&root, c"outer"), Err(Stop::NOT_FOUND));
        assert_eq!(read(&root, c"a/up/secret"), Err(Stop::NOT_FOUND));
        assert_eq!(read(&root, c"../secret"), Err(Stop::NOT_FOUND));
    }

    #[test]
    fn without_openat2_no_link_is_followed() {
        let outer = tree();
        let root = root(&outer, Links::Beneath, false);
        assert_eq!(read(&root, c"a/b/file").unwrap(), "inside");
        for link in [c"inner", c"inner-dir/b/file", c"outer", c"a/up/secret"] {
            assert_eq!(read(&root, link), Err(Stop::NOT_FOUND), "{link:?}");
        }
        assert!(
            root.open(c".", Wait::ForDisk)
                .unwrap()
                .metadata()
                .unwrap()
                .is_dir()
        );
        assert_eq!(
            root.open(c"a/b/file", Wait::Never).unwrap_err(),
            Stop::WouldBlock
        );
    }

    #[test]
    fn links_anywhere_lead_out() {
        let outer = tree();
        for openat2 in [true, false] {
            let root = root(&outer, Links::Anywhere, openat2);
            assert_eq!(read(&root, c"outer").unwrap(), "secret");
        }
    }

    #[test]
    fn every_errno_has_its_answer() {
        let of = |errno: Errno, wait| Stop::of(&errno.into(), wait);
        for (errno, status) in [
            (Errno::NOENT, 404),
            (Errno::NOTDIR, 404),
            (Errno::XDEV, 404),
            (Errno::LOOP, 404),
            (Errno::NAMETOOLONG, 404),
            (Errno::ILSEQ, 404),
            (Errno::NXIO, 404),
            (Errno::NODEV, 404),
            (Errno::ACCESS, 403),
            (Errno::PERM, 403),
            (Errno::MFILE, 503),
            (Errno::NFILE, 503),
            (Errno::NOMEM, 503),
            (Errno::AGAIN, 503),
            (Errno::IO, 500),
        ] {
            let status = Stop::Status(StatusCode::from_u16(status).unwrap());
            assert_eq!(of(errno, Wait::ForDisk), status, "{errno:?}");
        }
        assert_eq!(of(Errno::AGAIN, Wait::Never), Stop::WouldBlock);
        let no_errno = io::Error::from(io::ErrorKind::UnexpectedEof);
        let status = StatusCode::INTERNAL_SERVER_ERROR.into();
        assert_eq!(Stop::of(&no_errno, Wait::ForDisk), status);
    }
}
