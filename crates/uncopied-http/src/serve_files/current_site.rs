//! Keeps the site that requests are served from, and replaces it when the root's path leads
//! elsewhere.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};
use rustix::fs::{AtFlags, CWD};
use rustix::io::Errno;

use super::cache::{Cache, CacheLimits};
use super::config::Config;
use super::resolve::root::{Root, SymlinkPolicy};
use super::service::ServeFiles;
use super::site::Site;
use crate::file_stat::FileStat;

/// What [`ServeFiles::follow_root`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RootChange {
    /// The path still leads to the directory that is being served.
    None,
    /// The path leads to another directory, which is served from now on.
    Followed,
}

/// The site that requests are served from.
///
/// Each request loads the current site once, and keeps it until its response is made. So no
/// response mixes the files of two sites. Loading takes no lock and does not write to memory that
/// threads share.
#[derive(Debug)]
pub(super) struct CurrentSite {
    site: ArcSwap<Site>,
    source: SiteSource,
    /// Held during a check, so that the result of an older one never replaces that of a newer one.
    check: Mutex<()>,
}

/// The values from which a [`Site`] is made, apart from its root.
#[derive(Debug)]
pub(super) struct SiteSource {
    pub(super) config: Arc<Config>,
    pub(super) symlinks: SymlinkPolicy,
    pub(super) single: Option<CString>,
    pub(super) limits: CacheLimits,
    /// The absolute path of the root. `None` if the root cannot be followed.
    path: Option<PathBuf>,
}

impl SiteSource {
    /// Returns the values for sites whose first root is `root`, the directory that was opened at
    /// the path `dir`.
    pub(super) fn new(
        dir: &Path,
        root: &Root,
        config: Config,
        single: Option<CString>,
        limits: CacheLimits,
    ) -> Self {
        // Do not follow a path that does not lead to the directory that was just opened. That is
        // the case for a relative path if this process may not search the directories above its
        // current directory.
        let path = std::path::absolute(dir).ok();
        let path = path.filter(|path| {
            let stat = FileStat::at(CWD, path.as_path(), AtFlags::empty());
            stat.is_ok_and(|stat| root.is_at(&stat))
        });
        Self {
            config: Arc::new(config),
            symlinks: root.symlinks(),
            single,
            limits,
            path,
        }
    }

    fn site(&self, root: Root) -> Arc<Site> {
        Arc::new(Site {
            config: Arc::clone(&self.config),
            root: Arc::new(root),
            single: self.single.clone(),
            cache: Cache::new(self.limits, self.config.in_memory_max_bytes),
        })
    }
}

impl CurrentSite {
    pub(super) fn new(source: SiteSource, root: Root) -> Self {
        Self {
            site: ArcSwap::new(source.site(root)),
            source,
            check: Mutex::new(()),
        }
    }

    /// Returns the current site. Makes no system call, and does not contend with other threads.
    pub(super) fn load(&self) -> Guard<Arc<Site>> {
        self.site.load()
    }

    fn follow(&self) -> io::Result<RootChange> {
        // A poisoned lock may still be used, because it protects no data.
        let _checking = self.check.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = &self.source.path else {
            return Ok(RootChange::None);
        };
        let found = self.find_root(path);
        match found {
            Ok(None) => Ok(RootChange::None),
            Ok(Some(root)) => {
                self.site.store(self.source.site(root));
                Ok(RootChange::Followed)
            }
            Err(error) => {
                if !is_shortage(&error) && !self.load().root.is_missing() {
                    let missing = Root::missing(self.source.symlinks);
                    self.site.store(self.source.site(missing));
                }
                Err(error)
            }
        }
    }

    /// Returns the directory at `path` if it is another one than the current root.
    fn find_root(&self, path: &Path) -> io::Result<Option<Root>> {
        let stat = FileStat::at(CWD, path, AtFlags::empty())?;
        if self.load().root.is_at(&stat) {
            return Ok(None);
        }
        Root::open_dir(path, self.source.symlinks).map(Some)
    }
}

/// Whether the error says that this process or the machine lacks resources, rather than that there
/// is no directory at the path.
fn is_shortage(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(
        errno,
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::INTR)
    )
}

impl ServeFiles {
    /// Whether the last call of [`follow_root`](Self::follow_root) found no directory at the path,
    /// so that every request gets status 503. Makes no system call.
    #[must_use]
    pub fn is_root_missing(&self) -> bool {
        self.current.load().root.is_missing()
    }

    /// Checks whether the path that this service was built for still leads to the directory that is
    /// being served. If it leads to another directory, serves that one from now on. This makes an
    /// atomic deployment visible, which renames a new link or a new directory over the path.
    ///
    /// The service never checks this by itself, because that would cost each request a system call.
    /// Call this method about once a second, and whenever a new version has been deployed. Clones
    /// of the service share the result. Makes one system call if nothing has changed, and may wait
    /// for the disk.
    ///
    /// If another directory is served, or none, the cache starts empty, and the descriptors of the
    /// previous directory and its files are closed as soon as the responses that are being made or
    /// sent are done with them. So a previous version can be removed, and its file system be
    /// unmounted.
    ///
    /// A relative path is made absolute when the service is built, so it stays the same when the
    /// process changes its current directory. Links in it are followed anew at each check. If a
    /// single file is served, this checks the directory of that file. The file itself is looked up
    /// for each request in any case.
    ///
    /// With tokio, a task is enough to call it:
    ///
    /// ```
    /// use std::time::Duration;
    /// use uncopied_http::ServeFiles;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// let files = ServeFiles::new(".")?;
    /// let followed = files.clone();
    /// tokio::spawn(async move {
    ///     let mut seconds = tokio::time::interval(Duration::from_secs(1));
    ///     loop {
    ///         seconds.tick().await;
    ///         if let Err(error) = followed.follow_root() {
    ///             eprintln!("all requests get status 503: {error}");
    ///         }
    ///     }
    /// });
    /// let app: axum::Router = axum::Router::new().fallback_service(files);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Any error from `statx(2)` and `openat(2)` for the path, such as
    /// [`NotFound`](io::ErrorKind::NotFound) or [`NotADirectory`](io::ErrorKind::NotADirectory).
    /// Requests for files then get 503 with `Retry-After`, until a later call finds a directory. If
    /// this process has no descriptor or memory left, the previous directory is served further.
    pub fn follow_root(&self) -> io::Result<RootChange> {
        self.current.follow()
    }
}
