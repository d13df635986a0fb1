//! Looks up whether a network interface can gather packets from several pieces of memory.

use std::ffi::CStr;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// `ETHTOOL_GSG` of `linux/ethtool.h`: get whether scatter-gather is on.
const ETHTOOL_GSG: u32 = 0x18;

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Whether the interface that has this address gathers the parts of a packet (`ethtool -k`:
/// `scatter-gather`). If it does not, the kernel copies every packet, even those of zero-copy
/// sends, and does not report that. `socket` is any socket. Returns `None` if no interface has the
/// address, or if it cannot be asked.
pub(crate) fn gathers(socket: BorrowedFd<'_>, address: IpAddr) -> Option<bool> {
    let name = interface_of(address)?;
    let mut value = EthtoolValue {
        command: ETHTOOL_GSG,
        data: 0,
    };
    // SAFETY: `ifreq` consists of integers and a pointer, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_name = name;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: for this request, the kernel reads and writes the `ethtool_value` that the `ifreq`
    // points to. Both are locals.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    (result == 0).then_some(value.data != 0)
}

/// Returns the name of the interface that has this address.
fn interface_of(address: IpAddr) -> Option<[libc::c_char; libc::IFNAMSIZ]> {
    let mut list = ptr::null_mut();
    // SAFETY: the call writes a pointer to a local variable.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return None;
    }
    let mut found = None;
    let mut next = list;
    while found.is_none() {
        // SAFETY: the pointer is that of an element of the list, or null. The list is freed below.
        let Some(entry) = (unsafe { next.as_ref() }) else {
            break;
        };
        next = entry.ifa_next;
        // SAFETY: the pointer is null, or points to an address of the list.
        if unsafe { ip_at(entry.ifa_addr) } == Some(address) {
            // SAFETY: the name is a C string of the list.
            let name = unsafe { CStr::from_ptr(entry.ifa_name) }.to_bytes();
            let mut buffer = [0; libc::IFNAMSIZ];
            for (to, &from) in buffer.iter_mut().zip(name) {
                *to = from as libc::c_char;
            }
            found = (name.len() < libc::IFNAMSIZ).then_some(buffer);
        }
    }
    // SAFETY: the list comes from `getifaddrs`, and no reference into it exists any longer.
    unsafe { libc::freeifaddrs(list) };
    found
}

/// Returns the IP address of a socket address, if it is one.
///
/// # Safety
///
/// The pointer must be null, or point to a socket address that is as long as its family requires.
unsafe fn ip_at(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: the pointer is null or points to a socket address.
    let family = libc::c_int::from(unsafe { address.as_ref() }?.sa_family);
    match family {
        libc::AF_INET => {
            // SAFETY: an address of this family is a `sockaddr_in`.
            let ip = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from(u32::from_be(ip.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: an address of this family is a `sockaddr_in6`.
            let ip = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(Ipv6Addr::from(ip.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_loopback_interface_gathers() {
        let socket = TcpListener::bind("127.0.0.1:0").expect("bound");
        let local = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(gathers(socket.as_fd(), local), Some(true));
        let of_nobody = IpAddr::from([192, 0, 2, 77]);
        assert_eq!(gathers(socket.as_fd(), of_nobody), None);
    }
}
