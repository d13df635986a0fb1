//! Checks whether a path still leads to a file, at less cost than opening it again.

use std::ffi::CString;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::root::{Root, SymlinkPolicy, dirs_of};
use crate::file_stat::FileStat;

/// The maximum number of directories of a path that are queried one by one. For a longer path,
/// [`Root::stat_beneath`] makes fewer system calls.
const MAX_DIRS: usize = 2;

/// A path beneath a root at which a file was opened, and what is known of the directories that it
/// leads through.
///
/// It is not enough that the path leads to the same file as before: a directory may have been moved
/// out of the root, and a link to it put in its place. What proves that the path stays beneath the
/// root is a walk that follows no links. [`leads_to`](Self::leads_to) makes such a walk once, and
/// keeps the metadata that each directory had *before* the next name was looked up in it. While
/// that metadata is unchanged, so are the names in the directory, because a new, removed or renamed
/// name changes the times of its directory. So these checks prove as much as a new walk:
///
/// 1. The first name, looked up in the root, is that very directory, and not a link.
/// 2. Each further directory, whichever way it is reached, is unchanged. So at the time of the
///    first check, the directory above it still led to it.
/// 3. The file, whichever way it is reached, is unchanged. So it had this content at that time, and
///    the last directory led to it.
///
/// A name that changes between two of the checks does no harm: what is proved is the state at the
/// time of the first. As with files, the times prove something only if the directory was
/// [stable](FileStat::is_stable). On a file system that does not change the times of its
/// directories, a program could still swap a directory for a link between two checks.
#[derive(Debug)]
pub(crate) struct CheckedPath {
    root: Arc<Root>,
    path: CString,
    known: Mutex<Known>,
}

/// The metadata of each directory of a path, from the root downwards, and `None` for those that the
/// path does not have.
type Dirs = [Option<FileStat>; MAX_DIRS];

#[derive(Clone, Copy, Debug)]
enum Known {
    /// No walk has been made, or the last one found a directory that was not stable.
    Nothing,
    /// What the last walk has found.
    Dirs(Dirs),
    /// The path leads through a link or through many directories, so it must be opened.
    MustOpen,
}

/// The metadata of directories that was queried for one check, for further checks. It may be used
/// for a response only if it was queried after the request has arrived.
#[derive(Debug, Default)]
pub(crate) struct QueriedDirs {
    dirs: Vec<QueriedDir>,
    /// The number of system calls that were saved.
    pub(crate) hits: usize,
}

#[derive(Debug)]
struct QueriedDir {
    root: Arc<Root>,
    path: Box<[u8]>,
    stat: Option<FileStat>,
}

impl QueriedDirs {
    /// Returns the metadata of a directory. If `path` is a link, that of the link.
    fn stat(&mut self, root: &Arc<Root>, path: &[u8]) -> Option<FileStat> {
        let mut dirs = self.dirs.iter();
        if let Some(known) = dirs.find(|it| Arc::ptr_eq(&it.root, root) && *it.path == *path) {
            self.hits += 1;
            return known.stat;
        }
        let stat = root.stat_unfollowed(path).ok();
        self.dirs.push(QueriedDir {
            root: Arc::clone(root),
            path: path.into(),
            stat,
        });
        stat
    }
}

impl CheckedPath {
    pub(crate) fn new(root: &Arc<Root>, path: CString) -> Self {
        let known = match dirs_of(path.to_bytes()).count() {
            0..=MAX_DIRS => Known::Nothing,
            _ => Known::MustOpen,
        };
        Self {
            root: Arc::clone(root),
            path,
            known: Mutex::new(known),
        }
    }

    pub(crate) fn root(&self) -> &Arc<Root> {
        &self.root
    }

    /// Whether opening the path now would yield the file that has this metadata. Makes one system
    /// call for a path of a single name, and one more for each directory that is not yet in
    /// `queried`. Makes three or more if the path leads through links or many directories, or if
    /// a directory has changed.
    pub(crate) fn leads_to(&self, file: &FileStat, queried: &mut QueriedDirs) -> bool {
        let is = |stat: io::Result<FileStat>| stat.is_ok_and(|stat| stat == *file);
        if self.root.symlinks() == SymlinkPolicy::Anywhere {
            return is(self.root.stat(&self.path));
        }
        // The lock is not held during system calls.
        let known = *self.lock();
        if matches!(known, Known::MustOpen) {
            return is(self.root.stat_beneath(&self.path));
        }
        let mut dirs: Dirs = [None; MAX_DIRS];
        for (stat, path) in dirs.iter_mut().zip(dirs_of(self.path.to_bytes())) {
            *stat = queried.stat(&self.root, path);
        }
        if let Known::Dirs(known) = known
            && known == dirs
        {
            return is(self.root.stat_unfollowed(&*self.path));
        }
        let before = SystemTime::now();
        let (learned, leads_to) = if dirs.iter().flatten().all(|dir| dir.is_stable(before)) {
            self.walk(file, before)
        } else {
            (Known::Nothing, is(self.root.stat_beneath(&self.path)))
        };
        *self.lock() = learned;
        leads_to
    }

    /// Walks the path, and returns what that proves, and whether the path leads to the file.
    fn walk(&self, file: &FileStat, before: SystemTime) -> (Known, bool) {
        match self.root.stat_each(&self.path) {
            Ok((found, stat)) if stat == *file => {
                let is_stable = found.iter().all(|dir| dir.is_stable(before));
                let mut dirs: Dirs = [None; MAX_DIRS];
                for (stat, found) in dirs.iter_mut().zip(found) {
                    *stat = Some(found);
                }
                let known = if is_stable {
                    Known::Dirs(dirs)
                } else {
                    Known::Nothing
                };
                (known, true)
            }
            _ => {
                let stat = self.root.stat_beneath(&self.path);
                (Known::MustOpen, stat.is_ok_and(|stat| stat == *file))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Each change is a single assignment, so a panic leaves the value consistent.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;
    use crate::open_file::DiskAccess;

    struct Tree {
        outer: tempfile::TempDir,
        root: Arc<Root>,
    }

    impl Tree {
        /// Creates `files` in a new root.
        fn new(files: &[&str]) -> Self {
            let outer = tempfile::tempdir().unwrap();
            let path = outer.path().join("root");
            for file in files {
                let file = path.join(file);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, "content").unwrap();
            }
            let root = Root::open_dir(&path, SymlinkPolicy::BeneathRoot).unwrap();
            Self {
                outer,
                root: Arc::new(root),
            }
        }

        /// Waits until everything that has been created so far is stable.
        fn wait_until_stable(&self) {
            let marker = self.outer.path().join("marker");
            fs::write(&marker, "").unwrap();
            let stat = FileStat::of(&fs::File::open(marker).unwrap()).unwrap();
            while !stat.is_stable(SystemTime::now()) {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }

        fn outside(&self) -> PathBuf {
            self.outer.path().join("outside")
        }

        fn path(&self, path: &str) -> PathBuf {
            self.outer.path().join("root").join(path)
        }

        /// Returns the path and the metadata of the file that it leads to.
        fn open(&self, path: &str) -> (CheckedPath, FileStat) {
            let path = CString::new(path).unwrap();
            let file = self.root.open(&path, DiskAccess::MayBlock).unwrap();
            let stat = FileStat::of(&file).unwrap();
            (CheckedPath::new(&self.root, path), stat)
        }
    }

    fn leads_to(path: &CheckedPath, file: &FileStat) -> bool {
        path.leads_to(file, &mut QueriedDirs::default())
    }

    #[test]
    fn a_walk_is_remembered_unless_there_are_links_or_many_directories() {
        let tree = Tree::new(&["file", "a/file", "a/b/file", "a/b/c/file"]);
        symlink("a", tree.path("link")).unwrap();
        symlink("file", tree.path("a/to-file")).unwrap();
        symlink("a/file", tree.path("to-file")).unwrap();
        tree.wait_until_stable();
        for (path, is_remembered) in [
            ("file", true),
            ("a/file", true),
            ("a/b/file", true),
            ("a/b/c/file", false),
            ("link/file", false),
            ("a/to-file", false),
            ("to-file", false),
        ] {
            let (path, file) = tree.open(path);
            for _ in 0..2 {
                assert!(leads_to(&path, &file), "{path:?}");
                let is_known = matches!(*path.lock(), Known::Dirs(_));
                assert_eq!(is_known, is_remembered, "{path:?}");
            }
        }
    }

    #[test]
    fn whatever_changes_on_the_way_is_found() {
        type Change = fn(&Tree, &str);
        let (gone, link, other): (Change, Change, Change) = (
            |tree, path| fs::rename(tree.path(path), tree.outside()).unwrap(),
            |tree, path| symlink(tree.outside(), tree.path(path)).unwrap(),
            |tree, path| fs::rename(tree.path(&format!("other/{path}")), tree.path(path)).unwrap(),
        );
        let paths = ["a", "a/b", "a/b/file"];
        let changes = [&[gone][..], &[gone, link], &[gone, other]];
        let cases = paths
            .iter()
            .flat_map(|path| changes.map(|change| (path, change)));
        let trees: Vec<_> = cases
            .map(|case| (Tree::new(&["a/b/file", "other/a/b/file"]), case))
            .collect();
        trees[0].0.wait_until_stable();
        for (tree, (changed, changes)) in trees {
            let (path, file) = tree.open("a/b/file");
            assert!(leads_to(&path, &file));
            assert!(matches!(*path.lock(), Known::Dirs(_)));
            for change in changes {
                change(&tree, changed);
            }
            assert!(!leads_to(&path, &file), "{changed} {}", changes.len());
        }
    }

    #[test]
    fn a_new_file_in_a_directory_only_makes_the_next_checks_slower() {
        let tree = Tree::new(&["a/file"]);
        tree.wait_until_stable();
        let (path, file) = tree.open("a/file");
        assert!(leads_to(&path, &file));
        fs::write(tree.path("a/new"), "").unwrap();
        assert!(leads_to(&path, &file));
        assert!(matches!(*path.lock(), Known::Nothing), "not stable");
        tree.wait_until_stable();
        assert!(leads_to(&path, &file));
        assert!(matches!(*path.lock(), Known::Dirs(_)));
    }

    #[test]
    fn directories_are_queried_once_for_all_paths_of_a_group() {
        let tree = Tree::new(&["a/b/1", "a/b/2", "a/3"]);
        let mut queried = QueriedDirs::default();
        for (path, hits) in [("a/b/1", 0), ("a/b/2", 2), ("a/3", 3)] {
            let (path, file) = tree.open(path);
            assert!(path.leads_to(&file, &mut queried));
            assert_eq!(queried.hits, hits, "{path:?}");
        }
        assert_eq!(queried.dirs.len(), 2);
    }
}
