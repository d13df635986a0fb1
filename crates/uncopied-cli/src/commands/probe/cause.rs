//! Why the kernel has refused something, in words, and what would change that.

use std::io;

use nix::errno::Errno as Name;
use uncopied::{Errno, Mechanism};

use super::finding::Finding;
use super::process::{Process, sysctl};
use super::trial::Refusal;
use crate::error::kernel_text;

/// What raises RLIMIT_MEMLOCK.
pub(super) const MORE_LOCKED_MEMORY: &str =
    "ulimit -l 8192 (in KiB; as root, or LimitMEMLOCK=8M in a systemd unit)";

/// What raises RLIMIT_NOFILE.
pub(super) const MORE_DESCRIPTORS: &str = "ulimit -n 65536";

/// Returns the name of an errno, such as `EPERM`.
pub(super) fn name(errno: Errno) -> String {
    format!("{:?}", Name::from_raw(errno.raw_os_error()))
}

/// Returns the finding for a mechanism that did not move a byte.
pub(super) fn refused(mechanism: Mechanism, refusal: &Refusal, process: &Process) -> Finding {
    match refusal {
        Refusal::SwitchedOff(variable) => {
            Finding::no(format!("it is switched off by {variable}")).or(format!("unset {variable}"))
        }
        Refusal::Errno(errno) => of_errno(mechanism, *errno, process),
        Refusal::Connection(error) => no_connection(error),
        Refusal::Other(why) => Finding::no(why.clone()),
    }
}

/// Returns the finding if no connection could be made.
fn no_connection(error: &io::Error) -> Finding {
    let finding = Finding::no(format!(
        "no connection over loopback: {}",
        kernel_text(error)
    ));
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::MFILE) => finding.or(MORE_DESCRIPTORS),
        Some(Errno::NFILE) => finding.or("sysctl fs.file-max=1000000"),
        Some(Errno::PERM | Errno::ACCESS | Errno::NOSYS) => {
            finding.or("allow socket, bind, listen, connect and accept4 in the seccomp filter")
        }
        _ if error.kind() == io::ErrorKind::NetworkUnreachable => {
            finding.or("ip link set dev lo up")
        }
        _ => finding,
    }
}

fn of_errno(mechanism: Mechanism, errno: Errno, process: &Process) -> Finding {
    let call = call(mechanism);
    match errno {
        Errno::MFILE => Finding::no(format!(
            "{call} found no free descriptor: RLIMIT_NOFILE is reached (EMFILE)"
        ))
        .or(MORE_DESCRIPTORS),
        Errno::NFILE => Finding::no(format!(
            "{call} found no free descriptor in the system, or the pipes of this user use all \
             pages that they may (ENFILE)"
        ))
        .or("sysctl fs.pipe-user-pages-hard=0")
        .or("sysctl fs.file-max=1000000"),
        Errno::NOMEM | Errno::NOBUFS => no_memory(mechanism, errno, process),
        Errno::NOSYS | Errno::PERM | Errno::ACCESS => forbidden(mechanism, errno, process),
        Errno::INVAL | Errno::OPNOTSUPP | Errno::SPIPE => Finding::no(format!(
            "the kernel does not support {call} for these descriptors ({})",
            name(errno)
        ))
        .or("a newer kernel"),
        _ => Finding::no(format!("{call} failed: {errno}")),
    }
}

/// Memory that may not be locked, or that is not there.
fn no_memory(mechanism: Mechanism, errno: Errno, process: &Process) -> Finding {
    let call = call(mechanism);
    let errno_name = name(errno);
    let locks = matches!(mechanism, Mechanism::MsgZerocopy | Mechanism::SendZc);
    match process.locked_memory_limit().filter(|_| locks) {
        // What the trials lock is less than 1 MiB. A user may have locked more elsewhere.
        Some(limit) => Finding::no(format!(
            "{call} may not lock the memory to send: RLIMIT_MEMLOCK is {limit} bytes for all \
             processes of this user, and CAP_IPC_LOCK is missing ({errno_name})"
        ))
        .or(MORE_LOCKED_MEMORY),
        None if errno == Errno::NOBUFS => Finding::no(format!(
            "{call} has no room for a notification: net.core.optmem_max is {} bytes ({errno_name})",
            sysctl("net.core.optmem_max").unwrap_or_else(|| "unknown".to_owned())
        ))
        .or("sysctl net.core.optmem_max=131072"),
        None => Finding::no(format!("{call} got no memory ({errno_name})")),
    }
}

/// A setting, a seccomp filter or a security module forbids it, or the kernel lacks it.
fn forbidden(mechanism: Mechanism, errno: Errno, process: &Process) -> Finding {
    let errno_name = name(errno);
    if mechanism == Mechanism::SendZc
        && let Some(level) = process.io_uring_disabled.as_deref()
        && level != "0"
        && errno == Errno::PERM
    {
        return Finding::no(format!(
            "io_uring is forbidden: kernel.io_uring_disabled is {level} ({errno_name})"
        ))
        .or("sysctl kernel.io_uring_disabled=0");
    }
    let what = match mechanism {
        Mechanism::SendZc => "io_uring".to_owned(),
        _ => call(mechanism).to_owned(),
    };
    let calls = match mechanism {
        Mechanism::SendZc => "io_uring_setup, io_uring_enter and io_uring_register",
        Mechanism::Vmsplice => "pipe2, vmsplice and splice",
        Mechanism::Splice => "pipe2 and splice",
        _ => call(mechanism),
    };
    let allow =
        format!("allow {calls} in the seccomp filter (docker: --security-opt seccomp=FILE)");
    match (process.seccomp_filter, errno) {
        (true, _) => Finding::no(format!(
            "{what} is forbidden by the seccomp filter of this process ({errno_name})"
        ))
        .or(allow),
        (false, Errno::NOSYS) => Finding::no(format!(
            "the kernel was built without {what} ({errno_name})"
        ))
        .or("a kernel that has it"),
        (false, _) => Finding::no(format!(
            "{what} is forbidden, though by no seccomp filter: probably by a security module \
             ({errno_name})"
        )),
    }
}

/// Returns the system call of a mechanism, in the words of its manual page.
fn call(mechanism: Mechanism) -> &'static str {
    match mechanism {
        Mechanism::MsgZerocopy => "send with MSG_ZEROCOPY",
        Mechanism::SendZc => "io_uring",
        Mechanism::Vmsplice => "vmsplice",
        Mechanism::MapReceive => "getsockopt with TCP_ZEROCOPY_RECEIVE",
        other => other.system_call(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    const FILTER: bool = true;
    const NO_FILTER: bool = false;

    /// Each errno of each mechanism, with a part of the reason, and of what would change it.
    #[test]
    fn each_errno_has_a_cause() {
        use Mechanism::{MsgZerocopy, SendZc, Sendfile, Splice, Vmsplice};
        for (mechanism, errno, filter, disabled, why, change) in [
            (
                SendZc,
                Errno::PERM,
                NO_FILTER,
                "2",
                "io_uring_disabled is 2",
                "io_uring_disabled=0",
            ),
            (
                SendZc,
                Errno::PERM,
                FILTER,
                "1",
                "io_uring_disabled is 1",
                "io_uring_disabled=0",
            ),
            (
                SendZc,
                Errno::PERM,
                FILTER,
                "0",
                "by the seccomp filter",
                "io_uring_setup",
            ),
            (SendZc, Errno::PERM, NO_FILTER, "0", "security module", ""),
            (
                SendZc,
                Errno::NOSYS,
                FILTER,
                "0",
                "by the seccomp filter",
                "io_uring_setup",
            ),
            (
                SendZc,
                Errno::NOSYS,
                NO_FILTER,
                "0",
                "built without io_uring",
                "kernel",
            ),
            (
                SendZc,
                Errno::NOMEM,
                NO_FILTER,
                "0",
                "RLIMIT_MEMLOCK is",
                "ulimit -l",
            ),
            (
                SendZc,
                Errno::MFILE,
                NO_FILTER,
                "0",
                "RLIMIT_NOFILE",
                "ulimit -n",
            ),
            (
                MsgZerocopy,
                Errno::NOBUFS,
                NO_FILTER,
                "0",
                "RLIMIT_MEMLOCK is",
                "ulimit -l",
            ),
            (
                Sendfile,
                Errno::INVAL,
                NO_FILTER,
                "0",
                "does not support sendfile",
                "kernel",
            ),
            (
                Sendfile,
                Errno::ACCESS,
                NO_FILTER,
                "0",
                "security module",
                "",
            ),
            (Sendfile, Errno::IO, NO_FILTER, "0", "sendfile failed", ""),
            (
                Splice,
                Errno::NFILE,
                NO_FILTER,
                "0",
                "ENFILE",
                "pipe-user-pages-hard",
            ),
            (
                Splice,
                Errno::NOMEM,
                NO_FILTER,
                "0",
                "got no memory (ENOMEM)",
                "",
            ),
            (
                Vmsplice,
                Errno::PERM,
                FILTER,
                "0",
                "by the seccomp filter",
                "vmsplice and splice",
            ),
        ] {
            let process = Process::ordinary(filter, disabled);
            let finding = refused(mechanism, &Refusal::Errno(errno), &process);
            assert_eq!(finding.status, Status::No);
            assert!(
                finding.why.contains(why),
                "{why:?} is missing in {finding:?}"
            );
            assert!(finding.change.join(" ").contains(change), "{finding:?}");
            assert_eq!(finding.change.is_empty(), change.is_empty(), "{finding:?}");
        }
    }
}
