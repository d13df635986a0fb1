//! Starts programs under a seccomp filter, as containers use it.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// The `ioctl(2)` request of `/dev/userfaultfd` that creates a descriptor.
const USERFAULTFD_IOC_NEW: u64 = 0xaa00;

/// Runs `start` on a thread with a filter that makes these calls fail with `errno`. The filter
/// applies to that thread, and to the processes that it starts.
pub(crate) fn filtered<T: Send>(calls: &[i64], errno: i32, start: impl FnOnce() -> T + Send) -> T {
    let mut rules: BTreeMap<_, _> = calls.iter().map(|&call| (call, vec![])).collect();
    if calls.contains(&libc::SYS_userfaultfd) {
        // Refuse the request that does the same through a device, too.
        let (width, equal) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
        let request = SeccompCondition::new(1, width, equal, USERFAULTFD_IOC_NEW);
        let rule = SeccompRule::new(vec![request.unwrap()]).unwrap();
        rules.insert(libc::SYS_ioctl, vec![rule]);
    }
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let errno = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, arch).unwrap();
    let filter: BpfProgram = filter.try_into().unwrap();
    std::thread::scope(|scope| {
        let start = || {
            seccompiler::apply_filter(&filter).unwrap();
            start()
        };
        scope.spawn(start).join().unwrap()
    })
}
