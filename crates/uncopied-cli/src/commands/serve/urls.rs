//! The URLs at which clients reach a listening socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::SockRef;

use crate::server::listening::BoundListener;

/// The maximum number of addresses of interfaces for which URLs are printed.
const MAX_INTERFACE_URLS: usize = 8;

/// Returns the URLs at which clients reach a socket. For a socket on all addresses, these
/// are the URL for this machine, and those with the addresses that other machines use.
pub(super) fn urls(listener: &BoundListener) -> Vec<String> {
    match listener {
        BoundListener::Tcp(listener) => match listener.local_addr() {
            Ok(address) if address.ip().is_unspecified() => {
                let has_both =
                    address.is_ipv6() && SockRef::from(listener).only_v6().is_ok_and(|only| !only);
                wildcard_urls(address, has_both)
            }
            Ok(address) => vec![format!("http://{address}/")],
            Err(error) => vec![format!("a socket without an address ({error})")],
        },
        BoundListener::Unix { listener, .. } => {
            let address = listener.local_addr().ok();
            vec![
                match address.as_ref().and_then(|address| address.as_pathname()) {
                    Some(path) => format!("unix:{}", path.display()),
                    None => "a Unix socket without a path".to_owned(),
                },
            ]
        }
    }
}

/// Returns the URLs of a socket on all addresses of its family, or of both families.
fn wildcard_urls(address: SocketAddr, has_both: bool) -> Vec<String> {
    let port = address.port();
    let mut urls = vec![if has_both {
        format!("http://localhost:{port}/")
    } else if address.is_ipv6() {
        format!("http://{}/", SocketAddr::from((Ipv6Addr::LOCALHOST, port)))
    } else {
        format!("http://{}/", SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }];
    // If the interfaces cannot be listed, the URL for this machine is still true.
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let addresses = interfaces.iter().map(if_addrs::Interface::ip);
    let served = addresses.filter(|ip| match ip {
        IpAddr::V4(ip) => (address.is_ipv4() || has_both) && !ip.is_loopback(),
        // A link-local address is of use only together with the name of an interface, which a
        // browser does not accept in a URL.
        IpAddr::V6(ip) => address.is_ipv6() && !ip.is_loopback() && !ip.is_unicast_link_local(),
    });
    urls.extend(
        served
            .take(MAX_INTERFACE_URLS)
            .map(|ip| format!("http://{}/", SocketAddr::new(ip, port))),
    );
    urls
}
