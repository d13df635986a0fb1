//! The settings of the kernel that limit zero copy, with what each of them limits.

use std::fs;
use std::path::Path;

use rustix::process::Resource;
use serde::Serialize;

use super::process::{limit_text, sysctl};

/// A setting and its value.
#[derive(Debug, Serialize)]
pub(super) struct Setting {
    pub(super) name: &'static str,
    /// `None` if this kernel does not have the setting.
    pub(super) value: Option<String>,
    pub(super) limits: &'static str,
}

/// The sysctls, with what they limit.
const SYSCTLS: [(&str, &str); 12] = [
    (
        "net.core.optmem_max",
        "bytes of notifications that a socket holds; when it is used up, MSG_ZEROCOPY fails with \
         ENOBUFS, and is copied",
    ),
    (
        "fs.pipe-max-size",
        "bytes of a pipe without CAP_SYS_RESOURCE; splice and vmsplice want 1048576",
    ),
    (
        "fs.pipe-user-pages-soft",
        "pages of all pipes of a user, beyond which new pipes have one or two; 0 is no limit",
    ),
    (
        "fs.pipe-user-pages-hard",
        "pages of all pipes of a user, beyond which no pipe can be created; 0 is no limit",
    ),
    (
        "kernel.io_uring_disabled",
        "send_zc and zcrx: 0 allows io_uring, 1 only to privileged users, 2 to nobody",
    ),
    (
        "vm.unprivileged_userfaultfd",
        "copy on write: with 1, writes by the kernel are handled without CAP_SYS_PTRACE, too",
    ),
    (
        "net.ipv4.tcp_rmem",
        "least, first and largest receive buffer, in bytes; two payloads have to fit",
    ),
    (
        "net.ipv4.tcp_wmem",
        "least, first and largest send buffer, in bytes; it limits what one call can send",
    ),
    (
        "net.ipv4.tcp_congestion_control",
        "how fast a connection sends; bbr halves the throughput of loopback",
    ),
    (
        "net.ipv4.tcp_timestamps",
        "payloads of whole pages: both sides should agree",
    ),
    (
        "net.ipv4.tcp_available_ulp",
        "kernel TLS: whether tls is among the loaded protocols",
    ),
    (
        "vm.max_map_count",
        "mappings of a process; each huge page that was copied on write takes one",
    ),
];

/// Reads all settings.
pub(super) fn read() -> Vec<Setting> {
    let mut settings: Vec<_> = SYSCTLS
        .iter()
        .map(|&(name, limits)| Setting {
            name,
            value: sysctl(name),
            limits,
        })
        .collect();
    settings.extend([
        Setting {
            name: "RLIMIT_MEMLOCK",
            value: Some(limit_text(Resource::Memlock)),
            limits: "bytes that a user locks without CAP_IPC_LOCK: MSG_ZEROCOPY, io_uring and zcrx \
                     (ulimit -l, LimitMEMLOCK=)",
        },
        Setting {
            name: "RLIMIT_NOFILE",
            value: Some(limit_text(Resource::Nofile)),
            limits: "descriptors of a process; a pipe takes two, a ring one (ulimit -n, \
                     LimitNOFILE=)",
        },
        Setting {
            name: "transparent_hugepage",
            value: chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
            limits: "copy on write: regions need always or madvise",
        },
        Setting {
            name: "module tls",
            value: Some(tls_module()),
            limits: "kernel TLS (modprobe tls)",
        },
        Setting {
            name: "tls_stat",
            value: tls_stat(),
            limits: "kernel TLS: sockets that send now with encryption by the CPU and by a card",
        },
    ]);
    settings
}

/// Returns the word in brackets of a file that lists the possible values.
fn chosen(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let (_, rest) = text.split_once('[')?;
    let (word, _) = rest.split_once(']')?;
    Some(word.to_owned())
}

/// Returns whether the kernel has TLS, and where.
fn tls_module() -> String {
    let is_loaded = Path::new("/sys/module/tls").exists();
    // A built-in protocol has no parameters, and thus no directory under /sys/module.
    let is_there = Path::new("/proc/net/tls_stat").exists();
    let words = match (is_loaded, is_there) {
        (true, _) => "loaded",
        (false, true) => "built in",
        (false, false) => "not loaded",
    };
    words.to_owned()
}

/// Returns the numbers of sockets with kernel TLS, or `None` without kernel TLS.
fn tls_stat() -> Option<String> {
    let text = fs::read_to_string("/proc/net/tls_stat").ok()?;
    let number = |name: &str| {
        let mut lines = text.lines().map(str::split_whitespace);
        lines.find_map(|mut words| (words.next()? == name).then(|| words.next())?)
    };
    let software = number("TlsCurrTxSw")?;
    Some(format!("{software} {}", number("TlsCurrTxDevice")?))
}
