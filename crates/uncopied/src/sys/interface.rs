//! Looks up what a network interface is: its name, its MTU, its driver, whether it is up, and
//! whether it gathers packets from several pieces of memory, and which interface has an address.

use std::ffi::CStr;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::io::{Errno, Result};

use super::last_errno;

/// `ETHTOOL_GSG` of `linux/ethtool.h`: get whether scatter-gather is on.
const ETHTOOL_GSG: u32 = 0x18;

/// `ETHTOOL_GDRVINFO` of `linux/ethtool.h`: get the name of the driver.
const ETHTOOL_GDRVINFO: u32 = 0x3;

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct EthtoolDrvinfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware_version: [u8; 32],
    bus_info: [u8; 32],
    expansion_rom_version: [u8; 32],
    reserved: [u8; 12],
    numbers: [u32; 5],
}

const _: () = assert!(mem::size_of::<EthtoolDrvinfo>() == 196);

/// Whether the interface that has this address gathers the parts of a packet (`ethtool -k`:
/// `scatter-gather`). If it does not, the kernel copies every packet, even those of zero-copy
/// sends, and does not report that. `socket` is any socket. Returns `None` if no interface has the
/// address, or if it cannot be asked.
pub(crate) fn gathers(socket: BorrowedFd<'_>, address: IpAddr) -> Option<bool> {
    let name = interface_of(address).ok()??;
    let mut value = EthtoolValue {
        command: ETHTOOL_GSG,
        data: 0,
    };
    // SAFETY: for this command, the kernel reads and writes an `ethtool_value`.
    unsafe { ethtool(socket, name, &mut value) }.ok()?;
    Some(value.data != 0)
}

/// Returns the index of the interface that has this address, or `None` if no interface has it.
pub(crate) fn index_of_address(socket: BorrowedFd<'_>, address: IpAddr) -> Result<Option<u32>> {
    let Some(name) = interface_of(address)? else {
        return Ok(None);
    };
    let mut request = request(name);
    // SAFETY: for this request, the kernel reads the name, and writes the index to the `ifreq`.
    unsafe { interface_ioctl(socket, libc::SIOCGIFINDEX, &mut request) }?;
    // SAFETY: the kernel has just written this member. Any integer is valid.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    u32::try_from(index).map(Some).map_err(|_| Errno::NODEV)
}

/// Returns the MTU, in bytes, of the interface with this name. `socket` is any socket.
///
/// # Errors
///
/// `ENODEV` if there is no such interface.
pub(crate) fn mtu(socket: BorrowedFd<'_>, name: &str) -> Result<u32> {
    let mut request = request(c_name(name.as_bytes()).ok_or(Errno::NODEV)?);
    // SAFETY: for this request, the kernel reads the name, and writes the MTU to the `ifreq`.
    unsafe { interface_ioctl(socket, libc::SIOCGIFMTU, &mut request) }?;
    // SAFETY: the kernel has just written this member. Any integer is valid.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u32::try_from(mtu).unwrap_or(0))
}

/// Whether an interface is up (`IFF_UP`), and whether it is a loopback interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InterfaceFlags {
    pub(crate) is_up: bool,
    pub(crate) is_loopback: bool,
}

/// Returns the flags of the interface with this name. `socket` is any socket.
///
/// # Errors
///
/// `ENODEV` if there is no such interface.
pub(crate) fn interface_flags(socket: BorrowedFd<'_>, name: &str) -> Result<InterfaceFlags> {
    let mut request = request(c_name(name.as_bytes()).ok_or(Errno::NODEV)?);
    // SAFETY: for this request, the kernel reads the name, and writes the flags to the `ifreq`.
    unsafe { interface_ioctl(socket, libc::SIOCGIFFLAGS, &mut request) }?;
    // SAFETY: the kernel has just written this member. Any integer is valid.
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    Ok(InterfaceFlags {
        is_up: flags & libc::IFF_UP != 0,
        is_loopback: flags & libc::IFF_LOOPBACK != 0,
    })
}

/// Returns the indices of all interfaces in the network namespace of this thread, in ascending
/// order.
pub(crate) fn interface_indices() -> Result<Vec<u32>> {
    // SAFETY: the call has no preconditions.
    let list = unsafe { libc::if_nameindex() };
    if list.is_null() {
        return Err(last_errno());
    }
    let mut indices = Vec::new();
    let mut entry = list;
    loop {
        // SAFETY: the list is an array that ends with an entry whose index is 0, and `entry` is not
        // beyond that entry.
        let index = unsafe { (*entry).if_index };
        if index == 0 {
            break;
        }
        indices.push(index);
        // SAFETY: this entry is not the last one.
        entry = unsafe { entry.add(1) };
    }
    // SAFETY: the list was returned by `if_nameindex`, and nothing refers to it any longer.
    unsafe { libc::if_freenameindex(list) };
    indices.sort_unstable();
    Ok(indices)
}

/// Returns the name of the driver of the interface with this name, or `None` if it has no driver.
/// `socket` is any socket.
///
/// # Errors
///
/// `ENODEV` if there is no such interface.
pub(crate) fn driver(socket: BorrowedFd<'_>, name: &str) -> Result<Option<String>> {
    let name = c_name(name.as_bytes()).ok_or(Errno::NODEV)?;
    let mut info = EthtoolDrvinfo {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        version: [0; 32],
        firmware_version: [0; 32],
        bus_info: [0; 32],
        expansion_rom_version: [0; 32],
        reserved: [0; 12],
        numbers: [0; 5],
    };
    // SAFETY: for this command, the kernel reads and writes an `ethtool_drvinfo`.
    match unsafe { ethtool(socket, name, &mut info) } {
        Ok(()) => {}
        Err(Errno::OPNOTSUPP) => return Ok(None),
        Err(errno) => return Err(errno),
    }
    let driver = info.driver.split(|&byte| byte == 0).next().unwrap_or(&[]);
    let driver = String::from_utf8_lossy(driver).into_owned();
    Ok((!driver.is_empty()).then_some(driver))
}

/// The name of an interface in a request.
type Name = [libc::c_char; libc::IFNAMSIZ];

/// Makes a request of `SIOCETHTOOL`.
///
/// # Safety
///
/// `T` must be the structure that the kernel reads and writes for the command that is in its first
/// field, and any bytes must be valid for its other fields.
unsafe fn ethtool<T>(socket: BorrowedFd<'_>, name: Name, argument: &mut T) -> Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_data = (&raw mut *argument).cast();
    // SAFETY: for this request, the kernel reads and writes the structure that the `ifreq` points
    // to, which the caller guarantees to be of the right type, and which is borrowed exclusively.
    unsafe { interface_ioctl(socket, libc::SIOCETHTOOL, &mut request) }
}

/// Makes an `ioctl(2)` request about an interface.
///
/// # Safety
///
/// For this request, the kernel must read and write nothing but the `ifreq` and what it points to,
/// which must be valid for that.
unsafe fn interface_ioctl(
    socket: BorrowedFd<'_>,
    number: libc::c_ulong,
    request: &mut libc::ifreq,
) -> Result<()> {
    // SAFETY: the caller guarantees that the kernel accesses only the `ifreq`, which is borrowed
    // exclusively, and what it points to.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), number as libc::Ioctl, request) };
    if result == 0 {
        return Ok(());
    }
    Err(last_errno())
}

/// Returns a request about the interface with this name.
fn request(name: Name) -> libc::ifreq {
    // SAFETY: `ifreq` consists of integers and a pointer, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_name = name;
    request
}

/// Returns the name with zeroes after it, or `None` if it is too long.
fn c_name(name: &[u8]) -> Option<Name> {
    let mut buffer = [0; libc::IFNAMSIZ];
    for (to, &from) in buffer.iter_mut().zip(name) {
        *to = from as libc::c_char;
    }
    (name.len() < libc::IFNAMSIZ).then_some(buffer)
}

/// Returns the name of the interface that has this address, or `None` if no interface has it.
fn interface_of(address: IpAddr) -> Result<Option<Name>> {
    let mut list = ptr::null_mut();
    // SAFETY: the call writes a pointer to a local variable.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Err(last_errno());
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
            found = c_name(unsafe { CStr::from_ptr(entry.ifa_name) }.to_bytes());
        }
    }
    // SAFETY: the list comes from `getifaddrs`, and no reference into it exists any longer.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
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

    #[test]
    fn the_loopback_interface_has_an_mtu_and_no_driver() {
        let socket = TcpListener::bind("127.0.0.1:0").expect("bound");
        let socket = socket.as_fd();
        for address in ["127.0.0.1", "192.0.2.77"] {
            let index = index_of_address(socket, address.parse().expect("an address"));
            let expected = (address == "127.0.0.1").then_some(1);
            assert_eq!(index, Ok(expected), "{address}");
        }
        let mtu_file = std::fs::read_to_string("/sys/class/net/lo/mtu").expect("a file");
        assert_eq!(
            mtu(socket, "lo").map(|it| it.to_string()),
            Ok(mtu_file.trim().into())
        );
        assert_eq!(driver(socket, "lo"), Ok(None));
    }

    /// A name ends with a zero byte.
    #[test]
    fn names_have_at_most_15_bytes() {
        assert_eq!(c_name(&[b'x'; 15]).map(|name| name[15]), Some(0));
        assert!(c_name(&[b'x'; 16]).is_none());
    }

    #[test]
    fn names_of_no_interface_are_enodev() {
        let socket = TcpListener::bind("127.0.0.1:0").expect("bound");
        // If the last one were cut off after 15 bytes, it would be the name of `lo`.
        for name in ["", "uncopied-none", "lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"] {
            assert_eq!(mtu(socket.as_fd(), name), Err(Errno::NODEV), "{name:?}");
            assert_eq!(driver(socket.as_fd(), name), Err(Errno::NODEV), "{name:?}");
        }
    }
}
