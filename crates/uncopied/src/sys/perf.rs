//! What `uncopied audit` needs of `perf_event_open(2)` beyond the crate that it uses.

use std::os::fd::AsRawFd;

use rustix::io::Result;

use super::last_errno;

/// `PERF_EVENT_IOC_SET_OUTPUT` of `linux/perf_event.h`: `_IO('$', 5)`.
const PERF_EVENT_IOC_SET_OUTPUT: rustix::ioctl::Opcode = rustix::ioctl::opcode::none(b'$', 5);

/// Makes a perf event write its records to the ring of another event, which must be on the same
/// CPU (`PERF_EVENT_IOC_SET_OUTPUT`, see `perf_event_open(2)`). So a process with many threads
/// needs one ring for each CPU, instead of one for each thread and CPU.
///
/// Only for `uncopied-cli`, which has no unsafe code.
///
/// # Errors
///
/// The errno of `ioctl(2)`: `EINVAL` if the events are on different CPUs, `ENOTTY` for a descriptor
/// that is no perf event.
#[doc(hidden)]
pub fn share_perf_ring(event: &impl AsRawFd, with: &impl AsRawFd) -> std::io::Result<()> {
    Ok(share(event.as_raw_fd(), with.as_raw_fd())?)
}

fn share(event: i32, with: i32) -> Result<()> {
    // SAFETY: the argument of this request is a number, not a pointer. The kernel reserves the
    // number of the request for perf events (ioctl-number.rst), and refuses it for any other
    // descriptor, so that a wrong descriptor leads to an error.
    match unsafe { libc::ioctl(event, PERF_EVENT_IOC_SET_OUTPUT as libc::Ioctl, with) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_that_is_no_event_is_refused() {
        let file = std::fs::File::open("/dev/null").expect("it exists");
        let error = share_perf_ring(&file, &file).expect_err("it is no event");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}
