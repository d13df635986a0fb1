//! What the kernel allows this process: its user, capabilities and limits, and seccomp.

use std::fs;

use rustix::process::{Resource, Rlimit, geteuid, getrlimit};
use serde::Serialize;

/// The numbers of the capabilities that matter, as in `linux/capability.h`.
const CAP_NET_ADMIN: u32 = 12;
const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_RESOURCE: u32 = 24;

/// The privileges of this process.
#[derive(Debug, Serialize)]
pub(super) struct Process {
    /// The effective user.
    pub(super) user: u32,
    /// Whether a seccomp filter restricts the system calls of this process.
    pub(super) seccomp_filter: bool,
    /// Whether the process is in the first user namespace. Capabilities in another one, such as
    /// those of root in a rootless container, do not count for what the probe tries.
    pub(super) initial_user_namespace: bool,
    /// The capabilities that this process lacks, with what each of them would add.
    pub(super) missing_capabilities: Vec<MissingCapability>,
    #[serde(skip)]
    capabilities: u64,
    /// `kernel.io_uring_disabled`.
    #[serde(skip)]
    pub(super) io_uring_disabled: Option<String>,
}

/// A capability that the process lacks. Root has it.
#[derive(Debug, Serialize)]
pub(super) struct MissingCapability {
    pub(super) name: &'static str,
    pub(super) adds: &'static str,
}

impl Process {
    pub(super) fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().to_owned())
        };
        let capabilities = field("CapEff:").and_then(|hex| u64::from_str_radix(&hex, 16).ok());
        // In the first namespace, every number is mapped to itself.
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let initial_user_namespace = map.split_whitespace().eq(["0", "0", "4294967295"]);
        let mut process = Self {
            user: geteuid().as_raw(),
            seccomp_filter: field("Seccomp:").as_deref() == Some("2"),
            missing_capabilities: Vec::new(),
            capabilities: capabilities.filter(|_| initial_user_namespace).unwrap_or(0),
            io_uring_disabled: sysctl("kernel.io_uring_disabled"),
            initial_user_namespace,
        };
        for (number, name, adds) in [
            (
                CAP_NET_ADMIN,
                "CAP_NET_ADMIN",
                "registers receive queues (zcrx), changes interfaces, and lets the kernel load the \
                 module tls on demand",
            ),
            (
                CAP_IPC_LOCK,
                "CAP_IPC_LOCK",
                "exempts MSG_ZEROCOPY, io_uring and zcrx from RLIMIT_MEMLOCK",
            ),
            (
                CAP_SYS_PTRACE,
                "CAP_SYS_PTRACE",
                "protects regions against writes by the kernel, such as read(2) into them, too",
            ),
            (
                CAP_SYS_RESOURCE,
                "CAP_SYS_RESOURCE",
                "exempts pipes from fs.pipe-max-size and fs.pipe-user-pages-*",
            ),
        ] {
            if !process.has(number) {
                let missing = MissingCapability { name, adds };
                process.missing_capabilities.push(missing);
            }
        }
        process
    }

    fn has(&self, capability: u32) -> bool {
        self.capabilities & 1 << capability != 0
    }

    /// Returns the limit on locked memory, in bytes, or `None` if it does not apply to this
    /// process.
    pub(super) fn locked_memory_limit(&self) -> Option<u64> {
        if self.has(CAP_IPC_LOCK) {
            return None;
        }
        getrlimit(Resource::Memlock).current
    }

    /// Whether this process may register receive queues.
    pub(super) fn may_administer_network(&self) -> bool {
        self.has(CAP_NET_ADMIN)
    }
}

#[cfg(test)]
impl Process {
    /// A process of an ordinary user.
    pub(super) fn ordinary(seccomp_filter: bool, io_uring_disabled: &str) -> Self {
        Self {
            user: 1000,
            seccomp_filter,
            initial_user_namespace: true,
            missing_capabilities: Vec::new(),
            capabilities: 0,
            io_uring_disabled: Some(io_uring_disabled.to_owned()),
        }
    }
}

/// Returns a limit in words.
pub(super) fn limit_text(resource: Resource) -> String {
    let Rlimit { current, maximum } = getrlimit(resource);
    let text = |value: Option<u64>| value.map_or("unlimited".to_owned(), |it| it.to_string());
    format!("{} (can be raised to {})", text(current), text(maximum))
}

/// Returns the value of a sysctl such as `kernel.io_uring_disabled`, with single spaces between its
/// words, or `None` if the kernel does not have it or does not tell.
pub(super) fn sysctl(name: &str) -> Option<String> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    let text = fs::read_to_string(path).ok()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}
