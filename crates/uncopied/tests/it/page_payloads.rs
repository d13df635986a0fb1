use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use rustix::net::{AddressFamily, SocketType};
use uncopied::PagePayload;
use uncopied::interface::IpVersion;

use crate::harness::{HANG_TIMEOUT, expect_eof, in_network_namespace, pattern, run_ip, skip};

/// Addresses of the loopback interface, and the version of IP.
const LOOPBACK: [(&str, IpVersion); 2] =
    [("127.0.0.1:0", IpVersion::V4), ("[::1]:0", IpVersion::V6)];

fn page() -> usize {
    rustix::param::page_size()
}

/// Returns the payload, or skips the test if pages are so large that not even one fits.
fn payload(test: &str, pages: usize) -> Option<PagePayload> {
    if pages > PagePayload::max_pages() {
        skip(test, "the pages of this machine are too large");
        return None;
    }
    Some(PagePayload::new(pages).unwrap())
}

/// Whether this machine has an address of the loopback interface for this version of IP.
fn has(address: &str) -> bool {
    TcpListener::bind(address).is_ok()
}

/// Returns `struct tcp_info`.
#[allow(unsafe_code)]
fn tcp_info(socket: impl AsFd) -> libc::tcp_info {
    // SAFETY: the structure consists of integers, for which zeroes are valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to the local variable.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    assert_eq!(result, 0);
    info
}

/// Sends 64 pages from one socket to the other, and returns the length of the payloads, according
/// to the sender and according to the receiver.
fn payload_bytes(sender: &TcpStream, receiver: &TcpStream) -> (usize, usize) {
    receiver.set_read_timeout(Some(HANG_TIMEOUT)).unwrap();
    let sent = pattern(64 * page());
    let received = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let mut received = vec![0; sent.len()];
            let mut receiver = receiver;
            receiver.read_exact(&mut received).unwrap();
            received
        });
        let mut sender = sender;
        sender.write_all(&sent).unwrap();
        receiving.join().unwrap()
    });
    assert!(received == sent, "other bytes have arrived");
    let by_sender = tcp_info(sender).tcpi_snd_mss as usize;
    (by_sender, tcp_info(receiver).tcpi_rcv_mss as usize)
}

/// Asserts that the payloads have this length in both directions.
fn assert_payloads(sockets: [&TcpStream; 2], bytes: usize, case: &str) {
    let [one, other] = sockets;
    assert_eq!(payload_bytes(one, other), (bytes, bytes), "{case}");
    assert_eq!(payload_bytes(other, one), (bytes, bytes), "{case}");
}

/// Returns a connection whose server has the payload `listener`, and whose client has the payload
/// `connector`. Without one, the socket is an ordinary one. The first socket is the server's.
fn connection(
    address: &str,
    listener: Option<PagePayload>,
    connector: Option<PagePayload>,
) -> [TcpStream; 2] {
    let listener = match listener {
        Some(payload) => payload.bind(address).unwrap(),
        None => TcpListener::bind(address).unwrap(),
    };
    let address = listener.local_addr().unwrap();
    let client = match connector {
        Some(payload) => payload.connect(address).unwrap(),
        None => TcpStream::connect(address).unwrap(),
    };
    [listener.accept().unwrap().0, client]
}

/// Whichever side sets the limit, it holds for both directions. If both sides set one, the smaller
/// one holds.
#[test]
fn both_directions_have_whole_pages() {
    let Some(one) = payload("page_payloads::both_directions_have_whole_pages", 1) else {
        return;
    };
    let largest = PagePayload::new(PagePayload::max_pages()).unwrap();
    for (address, _) in LOOPBACK.into_iter().filter(|(address, _)| has(address)) {
        for payload in [one, largest] {
            let bytes = payload.bytes();
            assert_eq!(bytes % page(), 0);
            for (listener, connector, side) in [
                (Some(payload), None, "listener"),
                (None, Some(payload), "connector"),
                (Some(payload), Some(payload), "both"),
            ] {
                let [server, client] = connection(address, listener, connector);
                let case = format!("{address}, {bytes} bytes, {side}");
                assert_payloads([&server, &client], bytes, &case);
            }
        }
        let [server, client] = connection(address, Some(largest), Some(one));
        assert_payloads([&server, &client], page(), address);
    }
}

/// Without a limit, the payloads are not whole pages. This shows that the test can fail.
#[test]
fn ordinary_sockets_have_other_payloads() {
    let [server, client] = connection(LOOPBACK[0].0, None, None);
    let (sent, _) = payload_bytes(&server, &client);
    assert_ne!(sent % page(), 0);
}

/// The limit can be set on a socket that the program has made itself, and on a listener before the
/// connection arrives. On a connected socket it would have no effect.
#[test]
fn sockets_of_the_program() {
    let Some(payload) = payload("page_payloads::sockets_of_the_program", 1) else {
        return;
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    payload.apply(&listener).unwrap();
    let address = listener.local_addr().unwrap();
    let client = TcpStream::connect(address).unwrap();
    let (server, _) = listener.accept().unwrap();
    assert_payloads([&server, &client], page(), "a listener");
    for connected in [&server, &client] {
        let error = payload.apply(connected).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
    }

    let ordinary = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    payload.apply(&socket).unwrap();
    let address = ordinary.local_addr().unwrap();
    rustix::net::connect(&socket, &address).unwrap();
    let (server, _) = ordinary.accept().unwrap();
    assert_payloads([&server, &socket.into()], page(), "a connector");
}

#[test]
fn sockets_that_are_not_tcp() {
    let Some(payload) = payload("page_payloads::sockets_that_are_not_tcp", 1) else {
        return;
    };
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = payload.apply(&udp).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT), "{error}");
    let unix = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let error = payload.apply(&unix).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP), "{error}");
    let (connected, _peer) = UnixStream::pair().unwrap();
    assert!(payload.apply(&connected).is_err());
}

#[test]
fn numbers_of_pages() {
    let max = PagePayload::max_pages();
    if page() == 4096 {
        assert_eq!(max, 7);
        let one = PagePayload::new(1).unwrap();
        let options = one.max_segment_bytes() - one.bytes();
        assert!([0, 12].contains(&options), "{options}");
        assert_eq!(one.mtu(IpVersion::V4) as usize, 4136 + options);
        assert_eq!(one.mtu(IpVersion::V6) as usize, 4156 + options);
    }
    for pages in [0, max + 1, 8, usize::MAX] {
        let error = PagePayload::new(pages).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{pages}");
    }
    for pages in 1..=max {
        let payload = PagePayload::new(pages).unwrap();
        assert_eq!(payload.bytes(), pages * page());
        payload.bind("127.0.0.1:0").unwrap();
    }
}

/// The first of several addresses that works is used, and the error is that of the last one.
#[test]
fn several_addresses() {
    let Some(payload) = payload("page_payloads::several_addresses", 1) else {
        return;
    };
    let listener = payload.bind("127.0.0.1:0").unwrap();
    let works = listener.local_addr().unwrap();
    // Nobody listens at this address: the socket only keeps others from using it.
    let bound = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    rustix::net::bind(&bound, &any_port).unwrap();
    let refuses = rustix::net::getsockname(&bound).unwrap();
    let refuses = SocketAddr::try_from(refuses).unwrap();
    let client = payload.connect(&[refuses, works][..]).unwrap();
    assert_eq!(client.peer_addr().unwrap(), works);
    let error = payload.connect(refuses).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    let error = payload.bind(works).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    let error = payload.connect(&[][..]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    // A new listener may use the address of connections that have just been closed.
    let (server, _) = listener.accept().unwrap();
    drop(server);
    drop(listener);
    let mut client = client;
    expect_eof(&mut client);
    drop(client);
    payload.bind(works).unwrap();
}

/// With an MTU of exactly `PagePayload::mtu`, the payloads are whole pages. With one byte less, the
/// kernel shortens them by that byte, without an error.
#[test]
fn the_mtu_decides() {
    in_network_namespace("page_payloads::the_mtu_decides", || {
        let Some(payload) = payload("page_payloads::the_mtu_decides", 1) else {
            return;
        };
        run_ip("link set lo up");
        for (address, version) in LOOPBACK {
            let mtu = payload.mtu(version);
            for missing in [0, 1] {
                run_ip(&format!("link set lo mtu {}", mtu - missing));
                let [server, client] = connection(address, Some(payload), None);
                let case = format!("{address}, {missing} bytes too small");
                assert_payloads([&server, &client], page() - missing as usize, &case);
            }
        }
    });
}

/// If timestamps are switched off, no room is left for them.
#[test]
fn without_timestamps() {
    in_network_namespace("page_payloads::without_timestamps", || {
        let Some(with_timestamps) = payload("page_payloads::without_timestamps", 1) else {
            return;
        };
        assert_eq!(with_timestamps.max_segment_bytes(), page() + 12);
        std::fs::write("/proc/sys/net/ipv4/tcp_timestamps", "0").unwrap();
        let payload = PagePayload::new(1).unwrap();
        assert_eq!(payload.max_segment_bytes(), page());
        run_ip("link set lo up");
        for (address, version) in LOOPBACK {
            run_ip(&format!("link set lo mtu {}", payload.mtu(version)));
            let [server, client] = connection(address, Some(payload), None);
            assert_payloads([&server, &client], page(), address);
        }
        // This is why the setting matters: the room for the timestamps is used for the payload.
        run_ip("link set lo mtu 65536");
        let [server, client] = connection(LOOPBACK[0].0, Some(with_timestamps), None);
        assert_payloads([&server, &client], page() + 12, "room for timestamps");
    });
}
