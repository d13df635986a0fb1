//! Finds out whether the program still uses a socket of which the library holds a duplicate.

use std::fs;
use std::os::fd::BorrowedFd;

/// The open descriptors of the process, as symbolic links. Not `/proc/self/fd`, which is empty once
/// the main thread of a process has ended.
const DESCRIPTORS: &str = "/proc/thread-self/fd";

/// Whether this process has more than `own` open descriptors of the same socket. Returns false if
/// that cannot be found out, because there is no `/proc`.
///
/// Reads the link of every open descriptor, so this takes a few milliseconds per thousand of them.
/// Descriptors in other processes are not found.
pub(crate) fn has_other_descriptor(socket: BorrowedFd<'_>, own: usize) -> bool {
    let Ok(stat) = rustix::fs::fstat(socket) else {
        return false;
    };
    let Ok(descriptors) = fs::read_dir(DESCRIPTORS) else {
        return false;
    };
    let target = format!("socket:[{}]", stat.st_ino);
    let is_same = |link: &fs::DirEntry| {
        fs::read_link(link.path()).is_ok_and(|found| found.as_os_str() == target.as_str())
    };
    descriptors.flatten().filter(is_same).nth(own).is_some()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_duplicate_is_found_until_it_is_closed() {
        let (socket, _peer) = UnixStream::pair().expect("a pair");
        assert!(!has_other_descriptor(socket.as_fd(), 1));
        let duplicate = socket.try_clone().expect("duplicated");
        assert!(has_other_descriptor(socket.as_fd(), 1));
        assert!(has_other_descriptor(duplicate.as_fd(), 1));
        drop(duplicate);
        assert!(!has_other_descriptor(socket.as_fd(), 1));
    }
}
