//! The header of the PROXY protocol, which tells a server the addresses of the original client.
//!
//! [`parse`] is incremental and pure: it is called with all bytes that have arrived so far, and
//! either wants more, or says where the header ends. It never guesses. If the first bytes are not
//! the beginning of a header in an accepted version, the connection is invalid.
//!
//! # Bounds
//!
//! - Version 1 is one line of at most [`MAX_V1_BYTES`], with single spaces, addresses in the usual
//!   notation, ports without sign and leading zeros, and CR LF at the end.
//! - Version 2 says its length, which must fit the addresses, and whose rest must be a sequence of
//!   complete TLVs. This implementation accepts headers of at most [`MAX_V2_BYTES`].
//!
//! # Caveats
//!
//! TLVs are checked (also their CRC-32C, if there is one), but not passed on. Addresses of Unix
//! sockets and of datagrams are accepted, and treated like [`Header::Unspecified`].
//!
//! # References
//!
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>, sections 2.1 and 2.2.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crc::{CRC_32_ISCSI, Crc};

use crate::flags::{ProxyVersion, ProxyVersions};

/// The maximum size of a header of version 1, with its CR LF (section 2.1).
pub(crate) const MAX_V1_BYTES: usize = 107;

/// The maximum size of a header of version 2 that is accepted. The protocol allows 64 KiB, but a
/// header must fit into the buffer of a connection that has not been relayed yet. Headers without
/// TLVs have at most 232 bytes.
pub(crate) const MAX_V2_BYTES: usize = 4096;

const V1_PREFIX: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, version and command, family and transport, and the length.
const V2_FIXED_BYTES: usize = 16;
const TLV_HEAD_BYTES: usize = 3;
const TLV_CRC32C: u8 = 0x03;

/// CRC-32C, which iSCSI uses as well.
const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// What a header says about its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// The proxy opened the connection for itself, for example to check the server's health. Only
    /// version 2 can say so.
    Local,
    /// The proxy does not know the addresses, or they are not those of a TCP connection.
    Unspecified,
    /// The addresses of the original connection, both of the same family.
    Addresses {
        /// The address of the client.
        source: SocketAddr,
        /// The address to which the client connected.
        destination: SocketAddr,
    },
}

/// The result of [`parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// So far this is the beginning of a header. More bytes are needed.
    Incomplete,
    /// The header is complete.
    Complete {
        /// The header.
        header: Header,
        /// The size of the header in bytes. The bytes after it belong to the stream.
        len: usize,
    },
}

/// Why bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Invalid {
    /// The first bytes are not those of an accepted version.
    #[error("the connection does not begin with an accepted PROXY header")]
    NotAHeader,
    /// The line of version 1 has no end within 107 bytes.
    #[error("the PROXY line is longer than 107 bytes")]
    LineTooLong,
    /// A line feed without a carriage return, or the other way round.
    #[error("the PROXY line does not end with CR LF")]
    LineEnd,
    /// The protocol is none of TCP4, TCP6 and UNKNOWN.
    #[error("the PROXY line names an unknown protocol")]
    Protocol,
    /// There are more or fewer than two addresses and two ports, or one of them is malformed.
    #[error("the PROXY line has malformed addresses or ports")]
    Addresses,
    /// The version is not 2, or the command is neither LOCAL nor PROXY.
    #[error("the PROXY header has an unknown version or command")]
    Command,
    /// The family or the transport has no meaning.
    #[error("the PROXY header has an unknown address family or transport")]
    Family,
    /// The length is too small for the addresses.
    #[error("the PROXY header is too short for its addresses")]
    TooShort,
    /// The length is more than this implementation accepts.
    #[error("the PROXY header is longer than 4096 bytes")]
    TooLong,
    /// A TLV does not end within the header, or the CRC-32C does not have four bytes.
    #[error("the PROXY header has a malformed extension")]
    Tlv,
    /// The checksum is wrong.
    #[error("the PROXY header has a wrong checksum")]
    Checksum,
}

/// Looks for a header of an accepted version at the beginning of `bytes`, which are all bytes that
/// have been received so far.
///
/// # Errors
///
/// No further bytes could make this a valid header. The connection should be closed, because its
/// client cannot be identified.
pub(crate) fn parse(bytes: &[u8], accepted: ProxyVersions) -> Result<Parsed, Invalid> {
    let begins_like = |start: &[u8]| {
        let common = bytes.len().min(start.len());
        bytes[..common] == start[..common]
    };
    if accepted != ProxyVersions::V2 && begins_like(V1_PREFIX) {
        return parse_v1(bytes);
    }
    if accepted != ProxyVersions::V1 && begins_like(V2_SIGNATURE) {
        return parse_v2(bytes);
    }
    Err(Invalid::NotAHeader)
}

fn parse_v1(bytes: &[u8]) -> Result<Parsed, Invalid> {
    // The CR and the LF must both be within the limit.
    let line_limit = MAX_V1_BYTES - 1;
    let window = &bytes[..bytes.len().min(line_limit)];
    let Some(end) = window.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        return match bytes.len() < line_limit {
            true => Ok(Parsed::Incomplete),
            false => Err(Invalid::LineTooLong),
        };
    };
    match (bytes[end], bytes.get(end + 1)) {
        (b'\r', None) => return Ok(Parsed::Incomplete),
        (b'\r', Some(b'\n')) => {}
        _ => return Err(Invalid::LineEnd),
    }
    // If the line ends before the prefix does, the prefix did not match.
    let line = &bytes[V1_PREFIX.len()..end];
    let header = v1_header(line)?;
    let len = end + 2;
    Ok(Parsed::Complete { header, len })
}

fn v1_header(line: &[u8]) -> Result<Header, Invalid> {
    let mut words = line.split(|byte| *byte == b' ');
    let protocol = words.next().unwrap_or_default();
    if protocol == b"UNKNOWN" {
        // Whatever follows must be ignored.
        return Ok(Header::Unspecified);
    }
    let is_v4 = match protocol {
        b"TCP4" => true,
        b"TCP6" => false,
        _ => return Err(Invalid::Protocol),
    };
    let mut word = || {
        let word = words.next().and_then(|word| std::str::from_utf8(word).ok());
        word.ok_or(Invalid::Addresses)
    };
    let (source, destination) = (v1_ip(word()?, is_v4)?, v1_ip(word()?, is_v4)?);
    let (source_port, destination_port) = (v1_port(word()?)?, v1_port(word()?)?);
    if words.next().is_some() {
        return Err(Invalid::Addresses);
    }
    Ok(Header::Addresses {
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
    })
}

fn v1_ip(word: &str, is_v4: bool) -> Result<IpAddr, Invalid> {
    let ip = match is_v4 {
        true => word.parse().map(IpAddr::V4),
        false => word.parse().map(IpAddr::V6),
    };
    ip.map_err(|_| Invalid::Addresses)
}

/// Parses a decimal number without sign and without leading zeros, which `u16::from_str` allows.
fn v1_port(word: &str) -> Result<u16, Invalid> {
    let is_canonical =
        word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    match word.parse() {
        Ok(port) if is_canonical => Ok(port),
        _ => Err(Invalid::Addresses),
    }
}

fn parse_v2(bytes: &[u8]) -> Result<Parsed, Invalid> {
    let Some(&command) = bytes.get(12) else {
        return Ok(Parsed::Incomplete);
    };
    let is_local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Invalid::Command),
    };
    let Some(&family) = bytes.get(13) else {
        return Ok(Parsed::Incomplete);
    };
    // The family of a LOCAL header is ignored, as the protocol says.
    let address_bytes = match family {
        _ if is_local => 0,
        0x00 => 0,
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 216,
        _ => return Err(Invalid::Family),
    };
    let Some(&[high, low]) = bytes.get(14..V2_FIXED_BYTES) else {
        return Ok(Parsed::Incomplete);
    };
    let body_bytes = usize::from(u16::from_be_bytes([high, low]));
    let len = V2_FIXED_BYTES + body_bytes;
    if body_bytes < address_bytes {
        return Err(Invalid::TooShort);
    }
    if len > MAX_V2_BYTES {
        return Err(Invalid::TooLong);
    }
    let Some(whole) = bytes.get(..len) else {
        return Ok(Parsed::Incomplete);
    };
    let (addresses, tlvs) = whole[V2_FIXED_BYTES..].split_at(address_bytes);
    if address_bytes > 0 {
        check_tlvs(whole, tlvs)?;
    }
    let header = match (is_local, family) {
        (true, _) => Header::Local,
        (_, 0x11) => v2_addresses(addresses, |ip: [u8; 4]| Ipv4Addr::from(ip).into())?,
        (_, 0x21) => v2_addresses(addresses, |ip: [u8; 16]| Ipv6Addr::from(ip).into())?,
        _ => Header::Unspecified,
    };
    Ok(Parsed::Complete { header, len })
}

/// Reads two addresses of `N` bytes each, and two ports.
fn v2_addresses<const N: usize>(
    bytes: &[u8],
    to_ip: impl Fn([u8; N]) -> IpAddr,
) -> Result<Header, Invalid> {
    let split = || {
        let (source, rest) = bytes.split_first_chunk::<N>()?;
        let (destination, rest) = rest.split_first_chunk::<N>()?;
        let (source_port, rest) = rest.split_first_chunk::<2>()?;
        let destination_port = rest.first_chunk::<2>()?;
        let address =
            |ip: &[u8; N], port: &[u8; 2]| SocketAddr::new(to_ip(*ip), u16::from_be_bytes(*port));
        Some(Header::Addresses {
            source: address(source, source_port),
            destination: address(destination, destination_port),
        })
    };
    split().ok_or(Invalid::TooShort)
}

/// Checks that `tlvs`, the end of the header `whole`, is a sequence of complete TLVs, and that the
/// checksum is right, if there is one.
fn check_tlvs(whole: &[u8], tlvs: &[u8]) -> Result<(), Invalid> {
    let mut rest = tlvs;
    while !rest.is_empty() {
        let Some(&[kind, high, low]) = rest.first_chunk::<TLV_HEAD_BYTES>() else {
            return Err(Invalid::Tlv);
        };
        let value_start = whole.len() - rest.len() + TLV_HEAD_BYTES;
        let value_bytes = usize::from(u16::from_be_bytes([high, low]));
        let value = rest[TLV_HEAD_BYTES..].get(..value_bytes);
        let value = value.ok_or(Invalid::Tlv)?;
        if kind == TLV_CRC32C {
            check_checksum(whole, value_start, value)?;
        }
        rest = &rest[TLV_HEAD_BYTES + value_bytes..];
    }
    Ok(())
}

/// Checks the CRC-32C of a header, which is computed as if the bytes of the checksum itself were
/// zero.
fn check_checksum(whole: &[u8], at: usize, value: &[u8]) -> Result<(), Invalid> {
    let expected: [u8; 4] = value.try_into().map_err(|_| Invalid::Tlv)?;
    let mut digest = CRC32C.digest();
    digest.update(&whole[..at]);
    digest.update(&[0; 4]);
    digest.update(&whole[at + 4..]);
    match digest.finalize() == u32::from_be_bytes(expected) {
        true => Ok(()),
        false => Err(Invalid::Checksum),
    }
}

impl Header {
    /// Returns the header for a connection that was accepted from a client. An address is `None` if
    /// the connection came over a Unix socket.
    pub(crate) fn of_connection(
        source: Option<SocketAddr>,
        destination: Option<SocketAddr>,
    ) -> Self {
        let (Some(source), Some(destination)) = (source, destination) else {
            return Self::Unspecified;
        };
        // A socket that accepts both families shows IPv4 clients as IPv4-mapped addresses.
        let (mut from, mut to) = (source.ip().to_canonical(), destination.ip().to_canonical());
        if from.is_ipv4() != to.is_ipv4() {
            (from, to) = (mapped(from), mapped(to));
        }
        Self::Addresses {
            source: SocketAddr::new(from, source.port()),
            destination: SocketAddr::new(to, destination.port()),
        }
    }

    /// Returns the address of the client. `None` if the header does not tell it, so that the
    /// address of the connection's peer counts.
    pub(crate) fn source(&self) -> Option<SocketAddr> {
        match self {
            Self::Local | Self::Unspecified => None,
            Self::Addresses { source, .. } => Some(*source),
        }
    }

    /// Returns the bytes of the header.
    pub(crate) fn encode(&self, version: ProxyVersion) -> Vec<u8> {
        match version {
            ProxyVersion::V1 => self.encode_v1(),
            ProxyVersion::V2 => self.encode_v2(),
        }
    }

    fn encode_v1(&self) -> Vec<u8> {
        let Self::Addresses {
            source,
            destination,
        } = self
        else {
            return b"PROXY UNKNOWN\r\n".to_vec();
        };
        let protocol = if source.is_ipv4() { "TCP4" } else { "TCP6" };
        let (source_ip, destination_ip) = (source.ip(), destination.ip());
        let (source_port, destination_port) = (source.port(), destination.port());
        let mut line = Vec::with_capacity(MAX_V1_BYTES);
        // Writing to a Vec never fails.
        let _ = write!(
            line,
            "PROXY {protocol} {source_ip} {destination_ip} {source_port} {destination_port}\r\n"
        );
        line
    }

    fn encode_v2(&self) -> Vec<u8> {
        let (command, family, addresses) = match self {
            Self::Local => (0x20, 0x00, Vec::new()),
            Self::Unspecified => (0x21, 0x00, Vec::new()),
            Self::Addresses {
                source,
                destination,
            } => {
                let family = if source.is_ipv4() { 0x11 } else { 0x21 };
                let mut addresses = Vec::with_capacity(36);
                for ip in [source.ip(), destination.ip()] {
                    match ip {
                        IpAddr::V4(ip) => addresses.extend(ip.octets()),
                        IpAddr::V6(ip) => addresses.extend(ip.octets()),
                    }
                }
                addresses.extend(source.port().to_be_bytes());
                addresses.extend(destination.port().to_be_bytes());
                (0x21, family, addresses)
            }
        };
        let mut header = V2_SIGNATURE.to_vec();
        header.extend([command, family]);
        // At most 36 bytes.
        header.extend((addresses.len() as u16).to_be_bytes());
        header.extend(addresses);
        header
    }
}

fn mapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => IpAddr::V6(ip.to_ipv6_mapped()),
        IpAddr::V6(_) => ip,
    }
}

#[cfg(test)]
mod tests;
