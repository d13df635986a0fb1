//! What the kernel was doing in a sample, from the names of the functions on its stack.
//!
//! The names are those of Linux 5.10 to 7.3 on x86-64 and arm64: `lib/iov_iter.c`,
//! `include/linux/iov_iter.h`, `net/core/skbuff.c`, `net/core/datagram.c`, `arch/x86/lib/`
//! (`copy_user_64.S`, `memcpy_64.S`, `csum-copy_64.S`) and `arch/arm64/lib/`. Which of them a
//! kernel has depends on its version and its compiler: a routine that was inlined appears under
//! the name of its caller.

use std::fmt;

/// What a sample shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Activity {
    /// Copying payload.
    Copy,
    /// A function that switches interrupts on. The sampling clock is an interrupt, so the time of
    /// code that runs with interrupts off is counted there.
    InterruptsOn,
    /// The program itself.
    User,
    /// Entering and leaving system calls.
    Entry,
    /// Files and pipes: the page cache, splice.
    PageCache,
    /// Page faults, mappings, allocation of pages.
    Memory,
    /// Sockets, TCP, IP, devices.
    Protocol,
    /// Waiting and waking.
    Waiting,
    /// Anything else in the kernel.
    OtherKernel,
    /// Something in the kernel whose names are hidden.
    UnnamedKernel,
}

impl Activity {
    /// All of them, in the order of the report.
    pub(super) const ALL: [Self; 10] = [
        Self::Copy,
        Self::Protocol,
        Self::PageCache,
        Self::Memory,
        Self::Entry,
        Self::Waiting,
        Self::InterruptsOn,
        Self::OtherKernel,
        Self::UnnamedKernel,
        Self::User,
    ];

    /// The key in JSON.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::InterruptsOn => "interrupts_on",
            Self::User => "user",
            Self::Entry => "system_call_entry",
            Self::PageCache => "page_cache",
            Self::Memory => "memory",
            Self::Protocol => "protocol",
            Self::Waiting => "waiting",
            Self::OtherKernel => "other_kernel",
            Self::UnnamedKernel => "unnamed_kernel",
        }
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Copy => "copying payload",
            Self::InterruptsOn => "where interrupts come back on",
            Self::User => "user code",
            Self::Entry => "system-call entry",
            Self::PageCache => "page cache, files, pipes",
            Self::Memory => "page faults, memory",
            Self::Protocol => "protocol stack",
            Self::Waiting => "waiting and waking",
            Self::OtherKernel => "other kernel code",
            Self::UnnamedKernel => "kernel code, names hidden",
        })
    }
}

/// Routines that copy payload in any caller: they move bytes between an `iov_iter` and
/// memory, or between the parts of packets.
const PAYLOAD_COPIES: &[&str] = &[
    "_copy_from_iter",
    "_copy_from_iter_flushcache",
    "_copy_from_iter_nocache",
    "_copy_from_iter_full",
    "_copy_from_iter_full_nocache",
    "_copy_mc_to_iter",
    "_copy_to_iter",
    "copy_from_user_iter",
    "copy_from_user_iter_nocache",
    "copy_to_user_iter",
    "copy_folio_from_iter_atomic",
    "copy_page_from_iter_atomic",
    "iov_iter_copy_from_user_atomic",
    "copyin",
    "copyin_nocache",
    "copyout",
    "copyout_nofault",
    "memcpy_from_iter",
    "memcpy_to_iter",
    "memcpy_from_iter_mc",
    "memcpy_from_page",
    "memcpy_to_page",
    "csum_and_copy_from_iter",
    "csum_and_copy_from_iter_full",
    "csum_and_copy_from_user",
    "csum_and_copy_to_iter",
    "csum_and_copy_to_user",
    "csum_partial_copy",
    "csum_partial_copy_generic",
    "csum_partial_copy_nocheck",
    "csum_partial_copy_from_user",
    "csum_partial_copy_to_user",
    "hash_and_copy_to_iter",
    "skb_copy_and_csum_bits",
    "skb_copy_bits",
    "skb_copy_datagram_from_iter",
    "skb_copy_ubufs",
    "skb_store_bits",
    "simple_copy_to_iter",
];

/// Routines that copy anything: payload only if one of [`PAYLOAD_COPIES`] or
/// [`PAYLOAD_CALLERS`] calls them. Otherwise they copy the arguments of system calls, or headers.
const ANY_COPIES: &[&str] = &[
    "__arch_copy_from_user",
    "__arch_copy_in_user",
    "__arch_copy_to_user",
    "__copy_user_flushcache",
    "__copy_user_nocache",
    "__copy_user_nocache_flushcache",
    "__memcpy",
    "__memcpy_flushcache",
    "__memmove",
    "__pi_copy_page",
    "__pi_memcpy",
    "__pi_memcpy_generic",
    "__pi_memmove",
    "copy_mc_enhanced_fast_string",
    "copy_mc_fragile",
    "copy_mc_to_kernel",
    "copy_mc_to_user",
    "copy_page",
    "copy_user_enhanced_fast_string",
    "copy_user_fragile",
    "copy_user_generic",
    "copy_user_generic_string",
    "copy_user_generic_unrolled",
    "memcpy",
    "memcpy_erms",
    "memcpy_orig",
    "memmove",
    "memmove_erms",
    "rep_movs_alternative",
];

/// Functions that copy payload with [`ANY_COPIES`], but do much else. `copy_page_to_iter` copies
/// nothing if it splices to a pipe, which it does before Linux 6.5.
const PAYLOAD_CALLERS: &[&str] = &[
    "__skb_datagram_iter",
    "__skb_splice_bits",
    "copy_page_from_iter",
    "copy_page_to_iter",
    "copy_page_to_iter_nofault",
    "copy_splice_read",
    "generic_perform_write",
    "page_to_skb",
    "receive_small",
    "sk_msg_memcopy_from_iter",
    "skb_copy",
    "skb_copy_expand",
    "skb_do_copy_data_nocache",
    "skb_send_sock",
    "tcp_send_rcvq",
    "tcp_sendmsg_locked",
    "tls_sw_recvmsg",
    "tls_sw_sendmsg",
    "unix_stream_sendmsg",
    "virtnet_receive",
];

/// Functions that switch interrupts on, often at the end of long work.
const INTERRUPTS_ON: &[&str] = &[
    "__do_softirq",
    "__raw_spin_unlock_irq",
    "__raw_spin_unlock_irqrestore",
    "_raw_spin_unlock_irq",
    "_raw_spin_unlock_irqrestore",
    "_raw_read_unlock_irqrestore",
    "_raw_write_unlock_irqrestore",
    "arch_local_irq_enable",
    "arch_local_irq_restore",
    "finish_task_switch",
    "handle_softirqs",
    "irqentry_exit_to_user_mode",
    "local_daif_restore",
    "raw_spin_rq_unlock_irqrestore",
];

/// Functions at the border between user code and the kernel.
const ENTRY: &[&str] = &[
    "__x64_sys_",
    "__arm64_sys_",
    "__se_sys_",
    "do_el0_svc",
    "do_syscall_64",
    "el0",
    "el0t_64_sync",
    "entry_SYSCALL",
    "entry_SYSRETQ",
    "exit_to_user_mode",
    "invoke_syscall",
    "syscall_",
    "__audit_syscall",
    "__seccomp_filter",
    "seccomp",
    "x64_sys_call",
];

/// The beginnings of the names of functions, and what a sample shows in which such a function is
/// the innermost one that this table has.
const AREAS: &[(Activity, &[&str])] = &[
    (
        Activity::Waiting,
        &[
            "__schedule",
            "__wake_up",
            "autoremove_wake",
            "default_wake",
            "dequeue_",
            "do_epoll",
            "do_nanosleep",
            "do_poll",
            "do_select",
            "do_sys_poll",
            "enqueue_",
            "ep_",
            "futex_",
            "io_cqring_wait",
            "pick_next",
            "poll_",
            "preempt_schedule",
            "schedule",
            "select_task_rq",
            "sock_def_readable",
            "sock_poll",
            "tcp_poll",
            "try_to_wake_up",
            "ttwu_",
            "update_curr",
            "wake_up",
            "wait_woken",
            "woken_wake",
        ],
    ),
    (
        Activity::Memory,
        &[
            "__alloc_frozen_pages",
            "__alloc_pages",
            "__free_frozen_pages",
            "__free_pages",
            "__mm_populate",
            "__munmap",
            "__pte_",
            "alloc_anon",
            "alloc_frozen_pages",
            "alloc_pages",
            "asm_exc_page_fault",
            "clear_page",
            "copy_user_highpage",
            "do_anonymous_page",
            "do_fault",
            "do_mem_abort",
            "do_mmap",
            "do_user_addr_fault",
            "do_wp_page",
            "exc_page_fault",
            "flush_tlb",
            "free_frozen_page",
            "free_pages",
            "free_unref",
            "get_page_from_freelist",
            "get_user_pages",
            "gup_",
            "handle_mm_fault",
            "iov_iter_extract",
            "iov_iter_get_pages",
            "lru_add",
            "madvise",
            "mmap_",
            "native_flush_tlb",
            "pin_user",
            "rmqueue",
            "tlb_",
            "try_charge",
            "unmap_",
            "unpin_user",
            "vm_mmap",
            "wp_page_copy",
            "zap_",
        ],
    ),
    (
        Activity::PageCache,
        &[
            "__filemap",
            "__folio",
            "__splice",
            "__xas_",
            "btrfs_",
            "direct_splice",
            "do_sendfile",
            "do_splice",
            "ext4_",
            "f2fs_",
            "file_",
            "filemap_",
            "fsnotify",
            "fuse_",
            "generic_file",
            "generic_perform_write",
            "iomap_",
            "iter_file_splice",
            "link_pipe",
            "mark_page_accessed",
            "folio_",
            "folios_",
            "nfs_",
            "ovl_",
            "page_cache",
            "pipe_",
            "read_pages",
            "readahead",
            "rw_verify",
            "shmem_",
            "splice_",
            "touch_atime",
            "vmsplice_",
            "xa_",
            "xas_",
            "xfs_",
        ],
    ),
    (
        Activity::Protocol,
        &[
            "____sys_recvmsg",
            "____sys_sendmsg",
            "___sys_recvmsg",
            "___sys_sendmsg",
            "__alloc_skb",
            "__copy_skb",
            "__dev_",
            "__inet",
            "__ip_",
            "__kfree_skb",
            "__lock_sock",
            "__mptcp",
            "__napi",
            "__neigh",
            "__netif",
            "__nf_",
            "__qdisc",
            "__release_sock",
            "__sk_",
            "__skb",
            "__sock",
            "__sys_recv",
            "__sys_send",
            "__tcp",
            "__zerocopy",
            "alloc_skb",
            "bbr_",
            "bictcp_",
            "br_",
            "build_skb",
            "consume_skb",
            "cubictcp_",
            "dev_",
            "eth_",
            "fib_",
            "fq_",
            "gro_",
            "inet6_",
            "inet_",
            "ip6_",
            "ip_",
            "ipt_",
            "ipv4_",
            "ipv6_",
            "kfree_skb",
            "kfree_skbmem",
            "lock_sock",
            "loopback_",
            "mptcp_",
            "msg_zerocopy",
            "napi_",
            "neigh_",
            "net_",
            "netdev_",
            "netif_",
            "nf_",
            "nft_",
            "process_backlog",
            "qdisc_",
            "release_sock",
            "sch_",
            "security_sock",
            "sk_",
            "skb_",
            "sock_",
            "tcp4_",
            "tcp6_",
            "tcp_",
            "tls_",
            "tso_",
            "udp_",
            "udp6_",
            "udpv6_",
            "unix_",
            "validate_xmit",
            "veth_",
            "virtnet_",
            "xmit_",
            "zerocopy_",
        ],
    ),
];

/// Returns what a stack shows. `frames` are the names of its functions, the innermost first.
pub(super) fn classify<'a>(mut frames: impl Iterator<Item = &'a str> + Clone) -> Activity {
    let Some(leaf) = frames.clone().next() else {
        return Activity::OtherKernel;
    };
    if copies_payload(frames.clone()) {
        return Activity::Copy;
    }
    if INTERRUPTS_ON.contains(&leaf) {
        return Activity::InterruptsOn;
    }
    if starts_with_any(leaf, ENTRY) {
        return Activity::Entry;
    }
    frames.find_map(area).unwrap_or(Activity::OtherKernel)
}

/// Whether the innermost function copies payload.
fn copies_payload<'a>(mut frames: impl Iterator<Item = &'a str>) -> bool {
    let Some(leaf) = frames.next() else {
        return false;
    };
    if PAYLOAD_COPIES.contains(&leaf) {
        return true;
    }
    if !ANY_COPIES.contains(&leaf) {
        return false;
    }
    // `raw_copy_from_user` and its like may be between the routine and what called for a copy.
    frames
        .find(|name| !ANY_COPIES.contains(name) && !name.starts_with("raw_copy"))
        .is_some_and(|caller| PAYLOAD_COPIES.contains(&caller) || PAYLOAD_CALLERS.contains(&caller))
}

fn area(name: &str) -> Option<Activity> {
    AREAS
        .iter()
        .find(|(_, beginnings)| starts_with_any(name, beginnings))
        .map(|(activity, _)| *activity)
}

fn starts_with_any(name: &str, beginnings: &[&str]) -> bool {
    beginnings
        .iter()
        .any(|beginning| name.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stacks that were recorded, shortened, the innermost function first.
    #[test]
    fn recorded_stacks_are_classified() {
        for (stack, expected) in [
            (
                "_copy_from_iter tcp_sendmsg_locked tcp_sendmsg",
                Activity::Copy,
            ),
            (
                "rep_movs_alternative _copy_to_iter filemap_read",
                Activity::Copy,
            ),
            (
                "__arch_copy_to_user _copy_to_iter simple_copy_to_iter",
                Activity::Copy,
            ),
            ("memcpy skb_copy_ubufs skb_orphan_frags_rx", Activity::Copy),
            (
                "copy_user_generic_string copyin _copy_from_iter_full",
                Activity::Copy,
            ),
            (
                "csum_partial_copy_generic skb_copy_and_csum_bits",
                Activity::Copy,
            ),
            // The arguments of a system call, and a header.
            (
                "rep_movs_alternative _copy_from_user import_iovec do_syscall_64",
                Activity::OtherKernel,
            ),
            (
                "memcpy eth_header neigh_connected_output",
                Activity::Protocol,
            ),
            (
                "_raw_spin_unlock_irqrestore __wake_up_sync_key",
                Activity::InterruptsOn,
            ),
            (
                "finish_task_switch __schedule schedule",
                Activity::InterruptsOn,
            ),
            (
                "filemap_get_read_batch filemap_splice_read",
                Activity::PageCache,
            ),
            (
                "__rcu_read_lock splice_to_socket do_sendfile",
                Activity::PageCache,
            ),
            (
                "kmem_cache_free tcp_clean_rtx_queue tcp_ack",
                Activity::Protocol,
            ),
            (
                "clear_page_rep get_page_from_freelist __alloc_skb",
                Activity::Memory,
            ),
            (
                "do_syscall_64 entry_SYSCALL_64_after_hwframe",
                Activity::Entry,
            ),
            ("update_curr dequeue_entity __schedule", Activity::Waiting),
            (
                "ktime_get do_syscall_64 entry_SYSCALL_64_after_hwframe",
                Activity::OtherKernel,
            ),
        ] {
            assert_eq!(classify(stack.split(' ')), expected, "{stack}");
        }
        assert_eq!(classify([].into_iter()), Activity::OtherKernel);
    }
}
