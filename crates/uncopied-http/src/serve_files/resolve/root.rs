//! Opens paths beneath one directory, and never outside it.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use http::StatusCode;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::file_stat::FileStat;
use crate::open_file::DiskAccess;

/// The maximum number of attempts at opening a path. A concurrent rename or a signal can make an
/// attempt fail.
const MAX_OPEN_ATTEMPTS: usize = 16;

/// The reason why a path could not be resolved to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResolveError {
    /// The disk is needed, but the caller must not wait for it.
    NeedsDisk,
    /// The request fails with this status.
    Status(StatusCode),
}

impl From<StatusCode> for ResolveError {
    fn from(status: StatusCode) -> Self {
        Self::Status(status)
    }
}

impl ResolveError {
    pub(crate) const NOT_FOUND: Self = Self::Status(StatusCode::NOT_FOUND);

    /// Maps an error from opening, querying or reading a file to the outcome of the request.
    ///
    /// | errno | outcome |
    /// |---|---|
    /// | EAGAIN with `DiskAccess::CachedOnly` | `NeedsDisk`: retry on a thread that may block |
    /// | ENOENT, ENOTDIR | 404 |
    /// | EXDEV (`RESOLVE_BENEATH`), ELOOP, ENAMETOOLONG, EILSEQ | 404 |
    /// | ENXIO, ENODEV (a socket, a device without a driver) | 404 |
    /// | EACCES, EPERM | 403 |
    /// | EMFILE, ENFILE, ENOMEM, EAGAIN, EBUSY (file being written) | 503: may succeed later |
    /// | any other | 500 |
    pub(crate) fn from_io(error: &io::Error, access: DiskAccess) -> Self {
        if error.kind() == io::ErrorKind::WouldBlock && access == DiskAccess::CachedOnly {
            return Self::NeedsDisk;
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

/// Controls which symbolic links are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SymlinkPolicy {
    /// Follow only links that stay beneath the root, or no links at all if `openat2(2)` is
    /// unavailable.
    BeneathRoot,
    /// Follow all links.
    Anywhere,
}

/// The directory beneath which all paths are looked up. It is opened once and kept open.
#[derive(Debug)]
pub(crate) struct Root {
    /// The directory, with the metadata that it had when it was opened. `None` if there is no
    /// directory at the root's path.
    dir: Option<(OwnedFd, FileStat)>,
    symlinks: SymlinkPolicy,
    has_openat2: bool,
}

impl Root {
    pub(crate) fn open_dir(path: &Path, symlinks: SymlinkPolicy) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())?;
        let stat = FileStat::at(&dir, c"", AtFlags::EMPTY_PATH)?;
        Ok(Self {
            dir: Some((dir, stat)),
            symlinks,
            has_openat2: has_openat2(),
        })
    }

    /// Returns a root without a directory, in which every request for a file gets 503.
    pub(crate) fn missing(symlinks: SymlinkPolicy) -> Self {
        Self {
            dir: None,
            symlinks,
            has_openat2: has_openat2(),
        }
    }

    pub(crate) fn is_missing(&self) -> bool {
        self.dir.is_none()
    }

    pub(crate) fn symlinks(&self) -> SymlinkPolicy {
        self.symlinks
    }

    /// Whether `stat` is the metadata of the root's directory. The directory's content may have
    /// changed meanwhile.
    pub(crate) fn is_at(&self, stat: &FileStat) -> bool {
        let dir = self.dir.as_ref();
        dir.is_some_and(|(_, own)| own.is_same_file(stat))
    }

    fn dir(&self) -> rustix::io::Result<BorrowedFd<'_>> {
        let dir = self.dir.as_ref().ok_or(Errno::NOENT)?;
        Ok(dir.0.as_fd())
    }

    /// Returns the metadata of the file that `path` leads to. Makes one system call. Follows links
    /// even if they lead out of the root, so the result says nothing about whether requests may
    /// reach the file.
    pub(crate) fn stat(&self, path: &CStr) -> io::Result<FileStat> {
        FileStat::at(self.dir()?, path, AtFlags::NO_AUTOMOUNT)
    }

    /// Returns the metadata of the file that [`open`](Self::open) would open at `path`. Fails if a
    /// link leads out of the root. So if the result equals the metadata of a file that was opened
    /// earlier, opening the path now would yield that file again.
    ///
    /// Makes one system call if all links may be followed, and otherwise three (`openat2`, `statx`
    /// and `close`), because `statx` alone cannot be told to stay beneath the root. `openat2`
    /// resolves each name in the directory that it has just reached, and the `statx` that follows
    /// queries the resulting file itself, so a concurrent rename can come before or after a step of
    /// the walk, as it can when a file is opened, but not between the check and the use of a name.
    pub(super) fn stat_beneath(&self, path: &CStr) -> io::Result<FileStat> {
        if self.symlinks == SymlinkPolicy::Anywhere {
            return self.stat(path);
        }
        if self.has_openat2 {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let resolve = ResolveFlags::NO_MAGICLINKS | ResolveFlags::BENEATH;
            let file = rustix::fs::openat2(self.dir()?, path, flags, Mode::empty(), resolve)?;
            return FileStat::at(file, c"", AtFlags::EMPTY_PATH);
        }
        // If the last name is a link, this returns the metadata of the link, which differs from
        // that of any file that `open` can have opened.
        Ok(self.stat_each(path)?.1)
    }

    /// Returns the metadata of what is at `path`, which is a link itself if the last name is one.
    /// Makes one system call. Links before the last name are followed.
    pub(super) fn stat_unfollowed(&self, path: impl Arg) -> io::Result<FileStat> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        FileStat::at(self.dir()?, path, flags)
    }

    /// Returns the metadata of each directory that `path` leads through, and then that of the file.
    /// Each of the former is queried before the next name is looked up in that directory. Follows
    /// no links: fails if the path leads through one.
    pub(super) fn stat_each(&self, path: &CStr) -> io::Result<(Vec<FileStat>, FileStat)> {
        let mut dirs = Vec::new();
        let reached = |dir: &_| dirs.push(FileStat::at(dir, c"", AtFlags::EMPTY_PATH));
        let (parent, name) = self.walk_to_parent(path, reached)?;
        let parent = parent.as_ref().map_or(self.dir()?, AsFd::as_fd);
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let file = FileStat::at(parent, name, flags)?;
        Ok((dirs.into_iter().collect::<io::Result<_>>()?, file))
    }

    /// Whether nothing exists at `path`, not even a link. Makes one system call.
    pub(crate) fn is_absent(&self, path: &CStr) -> bool {
        let stat = self.stat_unfollowed(path);
        stat.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Opens `path` for reading, whatever type of file it leads to. The caller must check the type.
    ///
    /// `O_NONBLOCK` keeps a FIFO without a writer from blocking the thread. `O_NOCTTY` keeps a
    /// terminal from becoming the controlling terminal of this process.
    pub(crate) fn open(&self, path: &CStr, access: DiskAccess) -> Result<File, ResolveError> {
        if self.is_missing() {
            return Err(StatusCode::SERVICE_UNAVAILABLE.into());
        }
        for _ in 0..MAX_OPEN_ATTEMPTS {
            let opened = match (self.has_openat2, access) {
                (true, _) => self.open_by_openat2(path, access),
                // Without openat2, opening cannot be restricted to what the kernel has cached.
                (false, DiskAccess::CachedOnly) => return Err(ResolveError::NeedsDisk),
                (false, DiskAccess::MayBlock) => self.open_by_names(path),
            };
            match opened {
                Ok(file) => return Ok(file.into()),
                Err(Errno::INTR) => {}
                // Try again, as `openat2(2)` advises: a concurrent rename or mount kept the kernel
                // from proving that the path stays beneath the root.
                Err(Errno::AGAIN) if access == DiskAccess::MayBlock => {}
                // Linux before 5.12 does not support `RESOLVE_CACHED`, so the caller must retry on
                // a thread that may block.
                Err(Errno::INVAL) if access == DiskAccess::CachedOnly => {
                    return Err(ResolveError::NeedsDisk);
                }
                Err(errno) => return Err(ResolveError::from_io(&errno.into(), access)),
            }
        }
        Err(StatusCode::SERVICE_UNAVAILABLE.into())
    }

    fn open_by_openat2(&self, path: &CStr, access: DiskAccess) -> rustix::io::Result<OwnedFd> {
        let mut resolve = ResolveFlags::NO_MAGICLINKS;
        if self.symlinks == SymlinkPolicy::BeneathRoot {
            resolve |= ResolveFlags::BENEATH;
        }
        if access == DiskAccess::CachedOnly {
            resolve |= ResolveFlags::CACHED;
        }
        rustix::fs::openat2(self.dir()?, path, OPEN_FLAGS, Mode::empty(), resolve)
    }

    /// Opens `path` without `openat2`. With [`SymlinkPolicy::Anywhere`], follows all links.
    /// Otherwise, opens one name at a time and follows no links. That is enough to stay beneath the
    /// root, because a request path contains no `..`.
    fn open_by_names(&self, path: &CStr) -> rustix::io::Result<OwnedFd> {
        if self.symlinks == SymlinkPolicy::Anywhere {
            return rustix::fs::openat(self.dir()?, path, OPEN_FLAGS, Mode::empty());
        }
        let (parent, name) = self.walk_to_parent(path, |_| ())?;
        let parent = parent.as_ref().map_or(self.dir()?, AsFd::as_fd);
        rustix::fs::openat(parent, name, OPEN_FLAGS | OFlags::NOFOLLOW, Mode::empty())
    }

    /// Opens the directory that contains the last name of `path`, one name at a time and following
    /// no links. Calls `reached` with each directory before the next name is looked up in it, but
    /// not with the root. Returns the directory, or `None` if it is the root, and the last name.
    fn walk_to_parent<'a>(
        &self,
        path: &'a CStr,
        mut reached: impl FnMut(&OwnedFd),
    ) -> rustix::io::Result<(Option<OwnedFd>, &'a [u8])> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at: Option<OwnedFd> = None;
        for dir in dirs_of(path.to_bytes()) {
            let from = at.as_ref().map_or(self.dir()?, AsFd::as_fd);
            let next = rustix::fs::openat(from, last_name(dir), flags, Mode::empty())?;
            reached(&next);
            at = Some(next);
        }
        Ok((at, last_name(path.to_bytes())))
    }
}

/// Returns the path of each directory that `path` leads through, from the root downwards.
pub(super) fn dirs_of(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = (1..path.len()).filter(|at| path[*at] == b'/' && path[*at - 1] != b'/');
    slashes.map(|at| &path[..at])
}

/// Returns the part of `path` behind its last slash.
fn last_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

const OPEN_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC)
    .union(OFlags::LARGEFILE);

/// Whether this process may call `openat2`, determined by calling it once. The call fails with
/// ENOSYS on kernels before 5.6, and with EPERM under some seccomp filters.
fn has_openat2() -> bool {
    static HAS_OPENAT2: OnceLock<bool> = OnceLock::new();
    *HAS_OPENAT2.get_or_init(|| {
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

    fn root(outer: &tempfile::TempDir, symlinks: SymlinkPolicy, has_openat2: bool) -> Root {
        let mut root = Root::open_dir(&outer.path().join("root"), symlinks).unwrap();
        root.has_openat2 &= has_openat2;
        root
    }

    fn read(root: &Root, path: &CStr) -> Result<String, ResolveError> {
        let mut text = String::new();
        root.open(path, DiskAccess::MayBlock)?
            .read_to_string(&mut text)
            .unwrap();
        Ok(text)
    }

    #[test]
    fn links_beneath_the_root_are_followed_and_others_are_not_found() {
        let outer = tree();
        let root = root(&outer, SymlinkPolicy::BeneathRoot, true);
        assert_eq!(read(&root, c"a/b/file").unwrap(), "inside");
        assert_eq!(read(&root, c"inner").unwrap(), "inside");
        assert_eq!(read(&root, c"outer"), Err(ResolveError::NOT_FOUND));
        assert_eq!(read(&root, c"a/up/secret"), Err(ResolveError::NOT_FOUND));
        assert_eq!(read(&root, c"../secret"), Err(ResolveError::NOT_FOUND));
    }

    #[test]
    fn without_openat2_no_link_is_followed() {
        let outer = tree();
        let root = root(&outer, SymlinkPolicy::BeneathRoot, false);
        assert_eq!(read(&root, c"a/b/file").unwrap(), "inside");
        for link in [c"inner", c"inner-dir/b/file", c"outer", c"a/up/secret"] {
            assert_eq!(read(&root, link), Err(ResolveError::NOT_FOUND), "{link:?}");
        }
        assert!(
            root.open(c".", DiskAccess::MayBlock)
                .unwrap()
                .metadata()
                .unwrap()
                .is_dir()
        );
        assert_eq!(
            root.open(c"a/b/file", DiskAccess::CachedOnly).unwrap_err(),
            ResolveError::NeedsDisk
        );
    }

    /// What `stat_beneath` accepts decides whether the cache may serve a file without opening it.
    #[test]
    fn the_metadata_beneath_the_root_is_that_of_the_file_that_would_be_opened() {
        let outer = tree();
        symlink("../a/b/file", outer.path().join("root/a/down")).unwrap();
        symlink("a/b", outer.path().join("root/deep")).unwrap();
        symlink("../root/a", outer.path().join("root/out-and-in")).unwrap();
        for (symlinks, has_openat2) in [
            (SymlinkPolicy::BeneathRoot, true),
            (SymlinkPolicy::BeneathRoot, false),
            (SymlinkPolicy::Anywhere, true),
            (SymlinkPolicy::Anywhere, false),
        ] {
            let root = root(&outer, symlinks, has_openat2);
            for path in [
                c"a/b/file",
                c"inner",
                c"inner-dir/b/file",
                c"deep/file",
                c"a/down",
                c"outer",
                c"a/up/secret",
                c"out-and-in/b/file",
                c"missing",
                c"a/missing",
            ] {
                let opened = root.open(path, DiskAccess::MayBlock);
                let opened = opened.ok().map(|file| FileStat::of(&file).unwrap());
                // Without openat2, the metadata of a link itself may be returned, which is that of
                // no file that can be opened.
                let stat = root.stat_beneath(path).ok();
                let stat = stat.filter(FileStat::is_regular);
                assert_eq!(stat, opened, "{path:?} {symlinks:?} {has_openat2}");
            }
        }
    }

    #[test]
    fn links_out_of_the_root_are_followed_if_allowed() {
        let outer = tree();
        for has_openat2 in [true, false] {
            let root = root(&outer, SymlinkPolicy::Anywhere, has_openat2);
            assert_eq!(read(&root, c"outer").unwrap(), "secret");
        }
    }

    #[test]
    fn every_errno_has_its_outcome() {
        let of = |errno: Errno, access| ResolveError::from_io(&errno.into(), access);
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
            let status = ResolveError::Status(StatusCode::from_u16(status).unwrap());
            assert_eq!(of(errno, DiskAccess::MayBlock), status, "{errno:?}");
        }
        assert_eq!(
            of(Errno::AGAIN, DiskAccess::CachedOnly),
            ResolveError::NeedsDisk
        );
        let no_errno = io::Error::from(io::ErrorKind::UnexpectedEof);
        let status = StatusCode::INTERNAL_SERVER_ERROR.into();
        assert_eq!(
            ResolveError::from_io(&no_errno, DiskAccess::MayBlock),
            status
        );
    }
}
