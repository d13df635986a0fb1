#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use uncopied::interface::{HeaderSplit, Interface, InterfaceError, IpVersion, Obstacle, Offload};

use crate::harness::{in_network_namespace, run_ip, skip};

/// Returns the result, or `None` if this kernel has no ethtool netlink. Then the test is skipped.
fn unless_no_netlink(
    name: &str,
    result: Result<Interface, InterfaceError>,
) -> Option<Result<Interface, InterfaceError>> {
    if matches!(result, Err(InterfaceError::NoEthtoolNetlink)) {
        skip(name, "the kernel has no ethtool netlink");
        return None;
    }
    Some(result)
}

/// All ways to ask for the loopback interface must have the same result. It has no card, so the
/// only advice is that nothing splits headers.
#[test]
fn the_loopback_interface() {
    let name = "interfaces::the_loopback_interface";
    let Some(lo) = unless_no_netlink(name, Interface::by_name("lo")) else {
        return;
    };
    let lo = lo.unwrap();
    assert_eq!((lo.name.as_str(), lo.index), ("lo", 1));
    assert_eq!(lo.header_split, HeaderSplit::Unsupported);
    assert_eq!(lo.header_split_threshold, None);
    assert_eq!((lo.driver.as_ref(), lo.rx_ring_size), (None, None));
    assert_eq!((lo.tx_ring_size, lo.tx_queues), (None, None));
    assert!(lo.is_up && lo.is_loopback);
    // Linux never switches scatter-gather of the loopback interface off. No card does TLS for it.
    let offloads = lo.offloads.unwrap();
    assert_eq!(offloads.scatter_gather, Offload::On);
    assert_eq!(offloads.send_checksum, Offload::On);
    assert_eq!(offloads.tls_send, Offload::Unavailable);
    let mtu = std::fs::read_to_string("/sys/class/net/lo/mtu").unwrap();
    assert_eq!(lo.mtu.to_string(), mtu.trim());
    let advice = lo.advice();
    assert_eq!(advice.len(), 1, "{advice:?}");
    assert_eq!(advice[0].obstacle, Obstacle::SplitUnsupported);
    assert_eq!(advice[0].to_string(), advice[0].explanation);

    let by_address = Interface::by_address(Ipv4Addr::LOCALHOST.into()).unwrap();
    assert_eq!(by_address, lo);
    assert_eq!(Interface::all().unwrap()[0], lo);
    let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
    let by_mapped_address = Interface::by_address(mapped.into()).unwrap();
    assert_eq!(by_mapped_address, lo);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(Interface::of_socket(&listener).unwrap(), lo);
    let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert_eq!(Interface::of_socket(&connected).unwrap(), lo);
}

#[test]
fn interfaces_that_do_not_exist() {
    for name in [
        "",
        "uncopied-none",
        "a-name-that-is-too-long-for-linux",
        "lo\0",
        "lo/",
    ] {
        let error = Interface::by_name(name).unwrap_err();
        assert!(
            matches!(error, InterfaceError::NoSuchInterface),
            "{error:?}"
        );
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::NotFound);
    }
    // An address that is reserved for documentation, and the address of a listener on all of them.
    for address in ["192.0.2.77", "2001:db8::77", "0.0.0.0"] {
        let address: IpAddr = address.parse().unwrap();
        let error = Interface::by_address(address).unwrap_err();
        assert!(matches!(error, InterfaceError::NoInterfaceHasAddress(it) if it == address));
        assert!(error.to_string().contains(&address.to_string()));
        assert_eq!(
            io::Error::from(error).kind(),
            io::ErrorKind::AddrNotAvailable
        );
    }
    let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
    let error = Interface::of_socket(&everywhere).unwrap_err();
    assert!(matches!(error, InterfaceError::NoInterfaceHasAddress(_)));
    let (unix, _peer) = UnixStream::pair().unwrap();
    let error = Interface::of_socket(&unix).unwrap_err();
    assert!(matches!(error, InterfaceError::NotAnIpSocket));
    let file = tempfile::tempfile().unwrap();
    let error = Interface::of_socket(&file).unwrap_err();
    assert!(matches!(error, InterfaceError::Io(_)));
}

/// A process without a free descriptor gets an error with the cause.
#[test]
fn without_free_descriptors() {
    crate::harness::in_child(
        "interfaces::without_free_descriptors",
        |_| {},
        || {
            let limit = rustix::process::Rlimit {
                current: Some(0),
                maximum: Some(0),
            };
            rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
            let error = Interface::by_name("lo").unwrap_err();
            assert!(matches!(&error, InterfaceError::Io(_)), "{error:?}");
            let source = std::error::Error::source(&error).unwrap();
            let source = source.downcast_ref::<io::Error>().unwrap();
            assert_eq!(source.raw_os_error(), Some(libc::EMFILE));
        },
    );
}

/// A virtual Ethernet link has a driver and queues, but no rings. Its MTU and its addresses change
/// while the program runs.
#[test]
fn a_virtual_interface() {
    in_network_namespace("interfaces::a_virtual_interface", || {
        let name = "interfaces::a_virtual_interface";
        run_ip("link add uncopied0 numrxqueues 3 numtxqueues 2 type veth peer name uncopied1");
        run_ip("addr add 10.77.0.1/24 dev uncopied0 label uncopied0:x");
        run_ip("addr add 10.77.0.2/24 dev uncopied1");
        let Some(veth) = unless_no_netlink(name, Interface::by_name("uncopied0")) else {
            return;
        };
        let veth = veth.unwrap();
        assert_eq!(veth.name, "uncopied0");
        assert_eq!(veth.driver.as_deref(), Some("veth"));
        assert_eq!(veth.header_split, HeaderSplit::Unsupported);
        assert_eq!(veth.mtu, 1500);
        assert_eq!(veth.page_payload_bytes(IpVersion::V4), 0);
        assert_eq!((veth.rx_queues, veth.rx_queues_max), (Some(3), Some(3)));
        assert_eq!(veth.tx_queues_max, Some(2));
        assert!(
            matches!(veth.tx_queues, Some(1 | 2)),
            "{:?}",
            veth.tx_queues
        );
        assert!(!veth.is_up && !veth.is_loopback);

        // The kernel prints the label of an address instead of the name of the interface.
        let by_address = Interface::by_address([10, 77, 0, 1].into()).unwrap();
        assert_eq!(by_address, veth);
        let other = Interface::by_address([10, 77, 0, 2].into()).unwrap();
        assert_eq!(other.name, "uncopied1");

        let page = rustix::param::page_size();
        if page == 4096 {
            for (mtu, v4, v6) in [
                (4147, 0, 0),
                (4148, page, 0),
                (4168, page, page),
                (9000, 2 * page, 2 * page),
            ] {
                run_ip(&format!("link set dev uncopied0 mtu {mtu}"));
                let veth = Interface::by_name("uncopied0").unwrap();
                assert_eq!(veth.mtu, mtu);
                assert_eq!(veth.page_payload_bytes(IpVersion::V4), v4, "{mtu}");
                assert_eq!(veth.page_payload_bytes(IpVersion::V6), v6, "{mtu}");
            }
        }

        // Both ends have link-local addresses. The one with this address is found by its scope.
        run_ip("link set uncopied0 up");
        run_ip("link set uncopied1 up");
        run_ip("addr add fe80::77/64 dev uncopied0 nodad");
        run_ip("addr add fe80::77/64 dev uncopied1 nodad");
        for interface in [&veth, &other] {
            let address = format!("fe80::77%{}", interface.index);
            let address = format!("[{address}]:0");
            let listener = TcpListener::bind(address).unwrap();
            let found = Interface::of_socket(&listener).unwrap();
            assert_eq!(found.name, interface.name);
        }

        run_ip("link property add dev uncopied1 altname another");
        let by_other_name = Interface::by_name("another").unwrap();
        assert_eq!(by_other_name.name, "uncopied1");
        run_ip("link del uncopied0");
        let error = Interface::by_name("uncopied0").unwrap_err();
        assert!(
            matches!(error, InterfaceError::NoSuchInterface),
            "{error:?}"
        );
    });
}

/// Sets a setting of an interface with an `ioctl(2)` request of `linux/ethtool.h` that takes an
/// integer.
fn set(interface: &str, request: u32, value: u32) {
    let socket = UnixStream::pair().unwrap().0;
    let mut argument = [request, value];
    // SAFETY: the structure consists of integers and a pointer, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = argument.as_mut_ptr().cast();
    // SAFETY: the kernel reads two integers through the pointer in the structure, both locals.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// What is switched off is off, and can be switched on again. All interfaces are listed.
#[test]
fn offloads_that_are_switched_off() {
    in_network_namespace("interfaces::offloads_that_are_switched_off", || {
        let name = "interfaces::offloads_that_are_switched_off";
        run_ip("link add uncopied0 type veth peer name uncopied1");
        let Some(veth) = unless_no_netlink(name, Interface::by_name("uncopied0")) else {
            return;
        };
        let before = veth.unwrap().offloads.unwrap();
        assert_eq!(before.scatter_gather, Offload::On);
        assert_eq!(before.send_checksum, Offload::On);
        assert_eq!(before.generic_segmentation, Offload::On);
        assert_eq!(before.hardware_receive, Offload::Unavailable);

        let (set_scatter_gather, set_gro) = (0x19, 0x2c);
        set("uncopied0", set_scatter_gather, 0);
        set("uncopied0", set_gro, 0);
        let interfaces = Interface::all().unwrap();
        let names: Vec<_> = interfaces.iter().map(|it| it.name.as_str()).collect();
        assert!(names.starts_with(&["lo"]), "{names:?}");
        let offloads = |name: &str| {
            let interface = interfaces.iter().find(|it| it.name == name);
            interface.unwrap().offloads.unwrap()
        };
        assert_eq!(offloads("uncopied0").scatter_gather, Offload::Off);
        assert_eq!(offloads("uncopied0").tcp_segmentation, Offload::Off);
        assert_eq!(offloads("uncopied0").generic_receive, Offload::Off);
        assert_eq!(offloads("uncopied1").scatter_gather, Offload::On);

        set("uncopied0", set_scatter_gather, 1);
        let after = Interface::by_name("uncopied0").unwrap().offloads.unwrap();
        assert_eq!(after.scatter_gather, Offload::On);
    });
}
