#![allow(clippy::unwrap_used)]

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const ANY: ProxyVersions = ProxyVersions::Any;

fn addresses(source: &str, destination: &str) -> Header {
    Header::Addresses {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
    }
}

/// A header of version 2 with any command, family and body.
fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let mut header = V2_SIGNATURE.to_vec();
    header.extend([command, family]);
    header.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    header.extend(body);
    header
}

/// The addresses 10.0.0.1:1 and 10.0.0.2:2, followed by `tlvs`.
fn v4_body(tlvs: &[u8]) -> Vec<u8> {
    let mut body = vec![10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2];
    body.extend(tlvs);
    body
}

fn header_of(bytes: &[u8]) -> Result<Header, Invalid> {
    match parse(bytes, ANY)? {
        Parsed::Complete { header, len } => {
            assert_eq!(len, bytes.len());
            Ok(header)
        }
        Parsed::Incomplete => panic!("{bytes:?} is incomplete"),
    }
}

#[test]
fn lines_of_version_1_are_read() {
    for (line, header) in [
        (
            "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
            addresses("192.0.2.1:56324", "198.51.100.2:443"),
        ),
        (
            "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
            addresses("255.255.255.255:65535", "255.255.255.255:65535"),
        ),
        (
            "PROXY TCP6 2001:DB8::1 ::ffff:192.0.2.1 0 1\r\n",
            addresses("[2001:db8::1]:0", "[::ffff:192.0.2.1]:1"),
        ),
        ("PROXY UNKNOWN\r\n", Header::Unspecified),
        (
            "PROXY UNKNOWN anything  at \u{fc}ll\0\r\n",
            Header::Unspecified,
        ),
    ] {
        assert_eq!(header_of(line.as_bytes()), Ok(header), "{line:?}");
    }
}

#[test]
fn the_longest_line_has_107_bytes() {
    let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(91));
    assert_eq!(longest.len(), MAX_V1_BYTES);
    assert_eq!(header_of(longest.as_bytes()), Ok(Header::Unspecified));
    let longer = format!("PROXY UNKNOWN {}\r\n", "f".repeat(92));
    assert_eq!(header_of(longer.as_bytes()), Err(Invalid::LineTooLong));
    // Without an end, the line is refused as soon as it cannot end in time.
    let endless = "PROXY UNKNOWN ".to_owned() + &"f".repeat(200);
    let endless = endless.as_bytes();
    assert_eq!(
        parse(&endless[..MAX_V1_BYTES - 2], ANY),
        Ok(Parsed::Incomplete)
    );
    let too_long = Err(Invalid::LineTooLong);
    assert_eq!(parse(&endless[..MAX_V1_BYTES - 1], ANY), too_long);
}

#[test]
fn nothing_in_version_1_is_guessed() {
    for (line, reason) in [
        ("GET / HTTP/1.1\r\n", Invalid::NotAHeader),
        ("proxy UNKNOWN\r\n", Invalid::NotAHeader),
        ("PROXY\tUNKNOWN\r\n", Invalid::NotAHeader),
        ("PROXY UNKNOWN\n", Invalid::LineEnd),
        ("PROXY UNKNOWN\r\r\n", Invalid::LineEnd),
        ("PROXY UNKNOWN \rx\r\n", Invalid::LineEnd),
        ("PROXY \r\n", Invalid::Protocol),
        ("PROXY UNKNOWNS\r\n", Invalid::Protocol),
        ("PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n", Invalid::Protocol),
        ("PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n", Invalid::Protocol),
        ("PROXY TCP4\r\n", Invalid::Addresses),
        ("PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n", Invalid::Addresses),
        (
            "PROXY TCP4 192.0.2.1  192.0.2.2 1 2\r\n",
            Invalid::Addresses,
        ),
        (
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
            Invalid::Addresses,
        ),
        (
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            Invalid::Addresses,
        ),
        (
            "PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
            Invalid::Addresses,
        ),
        ("PROXY TCP4 192.0.2 192.0.2.2 1 2\r\n", Invalid::Addresses),
        (
            "PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
            Invalid::Addresses,
        ),
        ("PROXY TCP4 ::1 192.0.2.2 1 2\r\n", Invalid::Addresses),
        ("PROXY TCP6 192.0.2.1 ::1 1 2\r\n", Invalid::Addresses),
        ("PROXY TCP6 ::1%1 ::1 1 2\r\n", Invalid::Addresses),
        ("PROXY TCP6 [::1] ::1 1 2\r\n", Invalid::Addresses),
        (
            "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            Invalid::Addresses,
        ),
        (
            "PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n",
            Invalid::Addresses,
        ),
        (
            "PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
            Invalid::Addresses,
        ),
        (
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 00\r\n",
            Invalid::Addresses,
        ),
        (
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            Invalid::Addresses,
        ),
        (
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 0x2\r\n",
            Invalid::Addresses,
        ),
        (
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 \u{661}\r\n",
            Invalid::Addresses,
        ),
    ] {
        assert_eq!(parse(line.as_bytes(), ANY), Err(reason), "{line:?}");
    }
}

#[test]
fn headers_of_version_2_are_read() {
    let v4 = addresses("10.0.0.1:1", "10.0.0.2:2");
    let mut v6_body = [0; 36];
    v6_body[15] = 1;
    v6_body[31] = 2;
    v6_body[33] = 3;
    v6_body[34] = 1;
    let v6 = addresses("[::1]:3", "[::2]:256");
    for (bytes, header) in [
        (v2(0x21, 0x11, &v4_body(&[])), v4),
        (v2(0x21, 0x11, &v4_body(&[4, 0, 0, 0xE0, 0, 2, 7, 8])), v4),
        (v2(0x21, 0x21, &v6_body), v6),
        (v2(0x21, 0x12, &v4_body(&[])), Header::Unspecified),
        (v2(0x21, 0x31, &[7; 216]), Header::Unspecified),
        (v2(0x21, 0x00, &[]), Header::Unspecified),
        // What follows an unspecified family has no defined form.
        (v2(0x21, 0x00, b"what"), Header::Unspecified),
        (v2(0x20, 0x00, &[]), Header::Local),
        // A LOCAL header may claim any family, and anything may follow.
        (v2(0x20, 0xFF, b"what"), Header::Local),
        (v2(0x20, 0x11, &v4_body(&[])), Header::Local),
    ] {
        assert_eq!(header_of(&bytes), Ok(header), "{bytes:?}");
    }
}

#[test]
fn nothing_in_version_2_is_guessed() {
    let longest = MAX_V2_BYTES - V2_FIXED_BYTES;
    for (bytes, reason) in [
        (v2(0x11, 0x11, &v4_body(&[])), Invalid::Command),
        (v2(0x22, 0x11, &v4_body(&[])), Invalid::Command),
        (v2(0x21, 0x10, &v4_body(&[])), Invalid::Family),
        (v2(0x21, 0x01, &v4_body(&[])), Invalid::Family),
        (v2(0x21, 0x13, &v4_body(&[])), Invalid::Family),
        (v2(0x21, 0x41, &[0; 216]), Invalid::Family),
        (v2(0x21, 0x11, &[0; 11]), Invalid::TooShort),
        (v2(0x21, 0x21, &[0; 35]), Invalid::TooShort),
        (v2(0x21, 0x31, &[0; 215]), Invalid::TooShort),
        (v2(0x20, 0x00, &vec![0; longest + 1]), Invalid::TooLong),
        // One byte, and two, of the three that every TLV has.
        (v2(0x21, 0x11, &v4_body(&[4])), Invalid::Tlv),
        (v2(0x21, 0x11, &v4_body(&[4, 0])), Invalid::Tlv),
        // A value that ends one byte after the header, and one that ends far beyond it.
        (v2(0x21, 0x11, &v4_body(&[4, 0, 2, 9])), Invalid::Tlv),
        (v2(0x21, 0x11, &v4_body(&[4, 0xFF, 0xFF])), Invalid::Tlv),
        (v2(0x21, 0x11, &v4_body(&[3, 0, 3, 1, 2, 3])), Invalid::Tlv),
        (
            v2(0x21, 0x11, &v4_body(&[3, 0, 4, 1, 2, 3, 4])),
            Invalid::Checksum,
        ),
        (b"\r\n\r\n\0\r\nQUIT\r".to_vec(), Invalid::NotAHeader),
    ] {
        assert_eq!(parse(&bytes, ANY), Err(reason), "{bytes:?}");
    }
    let at_the_limit = v2(0x20, 0x00, &vec![0; longest]);
    assert_eq!(header_of(&at_the_limit), Ok(Header::Local));
}

#[test]
fn a_right_checksum_is_accepted_and_every_changed_bit_refused() {
    // Computed bit by bit, independently of the table of the crate.
    fn crc32c(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0x82F6_3B78 * (crc & 1));
            }
        }
        !crc
    }
    assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    // Another TLV follows the checksum.
    let mut bytes = v2(0x21, 0x11, &v4_body(&[3, 0, 4, 0, 0, 0, 0, 5, 0, 1, 9]));
    let sum = crc32c(&bytes);
    bytes[31..35].copy_from_slice(&sum.to_be_bytes());
    let expected = addresses("10.0.0.1:1", "10.0.0.2:2");
    assert_eq!(header_of(&bytes), Ok(expected));
    // Bits of addresses, ports, the checksum and the value of the other TLV.
    for index in (16..28).chain(31..35).chain([38]) {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[index] ^= 1 << bit;
            assert_eq!(header_of(&changed), Err(Invalid::Checksum), "byte {index}");
        }
    }
}

#[test]
fn only_accepted_versions_are_read() {
    let v1 = b"PROXY UNKNOWN\r\n";
    let v2 = v2(0x20, 0, &[]);
    for (bytes, accepted, is_accepted) in [
        (&v1[..], ProxyVersions::V1, true),
        (&v1[..], ProxyVersions::V2, false),
        (&v2[..], ProxyVersions::V2, true),
        (&v2[..], ProxyVersions::V1, false),
    ] {
        let parsed = parse(bytes, accepted);
        assert_eq!(parsed.is_ok(), is_accepted, "{accepted:?}: {parsed:?}");
        // The first byte is enough to tell.
        assert_eq!(parse(&bytes[..1], accepted).is_ok(), is_accepted);
    }
}

#[test]
fn addresses_of_a_connection_have_one_family() {
    let of = |source: &str, destination: &str| {
        Header::of_connection(
            Some(source.parse().unwrap()),
            Some(destination.parse().unwrap()),
        )
    };
    let v4 = addresses("192.0.2.1:1", "192.0.2.2:2");
    assert_eq!(of("[::ffff:192.0.2.1]:1", "192.0.2.2:2"), v4);
    let mixed = addresses("[::ffff:192.0.2.1]:1", "[2001:db8::1]:2");
    assert_eq!(of("192.0.2.1:1", "[2001:db8::1]:2"), mixed);
    // A scope has no place in a header.
    let link_local = addresses("[fe80::1]:1", "[fe80::2]:2");
    assert_eq!(of("[fe80::1%3]:1", "[fe80::2%3]:2"), link_local);
    let known: SocketAddr = "192.0.2.1:1".parse().unwrap();
    for (source, destination) in [(None, Some(known)), (Some(known), None), (None, None)] {
        let header = Header::of_connection(source, destination);
        assert_eq!(header, Header::Unspecified);
        assert_eq!(header.source(), None);
        assert_eq!(header.encode(ProxyVersion::V1), b"PROXY UNKNOWN\r\n");
        assert_eq!(header.encode(ProxyVersion::V2), v2(0x21, 0x00, &[]));
    }
    assert_eq!(Header::Local.encode(ProxyVersion::V2), v2(0x20, 0x00, &[]));
}

fn any_header() -> impl Strategy<Value = Header> {
    let v4 = any::<([u8; 4], u16)>().prop_map(|(ip, port)| SocketAddr::new(ip.into(), port));
    let v6 = any::<([u8; 16], u16)>().prop_map(|(ip, port)| SocketAddr::new(ip.into(), port));
    let pair = |(source, destination)| Header::Addresses {
        source,
        destination,
    };
    prop_oneof![
        1 => Just(Header::Local),
        1 => Just(Header::Unspecified),
        4 => (v4.clone(), v4).prop_map(pair),
        4 => (v6.clone(), v6).prop_map(pair),
    ]
}

/// Bytes of a valid header in either version, sometimes with TLVs, and the header that they mean.
fn valid_bytes() -> impl Strategy<Value = (Vec<u8>, Header)> {
    let tlvs = vec((0xE0..0xF0_u8, vec(any::<u8>(), 0..40)), 0..4);
    (any_header(), any::<bool>(), tlvs).prop_map(|(header, is_v1, tlvs)| {
        if is_v1 {
            let read = match header {
                Header::Local => Header::Unspecified,
                header => header,
            };
            return (header.encode(ProxyVersion::V1), read);
        }
        let mut bytes = header.encode(ProxyVersion::V2);
        for (kind, value) in tlvs {
            bytes.extend([kind, 0, value.len() as u8]);
            bytes.extend(value);
        }
        let body_bytes = (bytes.len() - V2_FIXED_BYTES) as u16;
        bytes[14..16].copy_from_slice(&body_bytes.to_be_bytes());
        (bytes, header)
    })
}

/// Beginnings of headers.
const BEGINNINGS: &[&[u8]] = &[
    b"PROXY ",
    b"PROXY TCP4 ",
    b"PROXY UNKNOWN",
    V2_SIGNATURE,
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0",
    b"",
];

proptest! {
    #[test]
    fn every_header_is_read_back(
        (bytes, header) in valid_bytes(),
        stream in vec(any::<u8>(), 0..50),
    ) {
        let len = bytes.len();
        let mut received = bytes;
        received.extend(stream);
        prop_assert_eq!(parse(&received, ANY), Ok(Parsed::Complete { header, len }));
    }

    #[test]
    fn every_prefix_of_a_header_is_incomplete((bytes, _) in valid_bytes()) {
        for end in 0..bytes.len() {
            prop_assert_eq!(parse(&bytes[..end], ANY), Ok(Parsed::Incomplete), "{}", end);
        }
    }

    /// What a changed header means must not depend on bytes after its end, and its end must be
    /// where the format says.
    #[test]
    fn changed_headers_stay_within_their_bounds(
        (bytes, _) in valid_bytes(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        stream in vec(any::<u8>(), 0..300),
    ) {
        let mut changed = bytes;
        for (index, byte) in changes {
            let index = index.index(changed.len());
            changed[index] = byte;
        }
        changed.extend(&stream);
        check_bounds(&changed)?;
    }

    #[test]
    fn any_bytes_after_a_beginning_stay_within_their_bounds(
        begin in prop::sample::select(BEGINNINGS),
        rest in vec(any::<u8>(), 0..300),
    ) {
        check_bounds(&[begin, &rest[..]].concat())?;
    }
}

fn check_bounds(bytes: &[u8]) -> Result<(), TestCaseError> {
    match parse(bytes, ANY) {
        Ok(Parsed::Complete { header, len }) => {
            prop_assert!(len <= bytes.len());
            if bytes[0] == b'P' {
                prop_assert!(len <= MAX_V1_BYTES);
                prop_assert!(bytes[..len].ends_with(b"\r\n"));
            } else {
                let said = u16::from_be_bytes([bytes[14], bytes[15]]);
                prop_assert_eq!(len, V2_FIXED_BYTES + usize::from(said));
            }
            let alone = parse(&bytes[..len], ANY);
            prop_assert_eq!(alone, Ok(Parsed::Complete { header, len }));
            prop_assert_eq!(parse(&bytes[..len - 1], ANY), Ok(Parsed::Incomplete));
        }
        Ok(Parsed::Incomplete) => prop_assert!(bytes.len() < MAX_V2_BYTES),
        // Once bytes are no header, further bytes do not make them one.
        Err(reason) => prop_assert_eq!(parse(&[bytes, b"\r\n"].concat(), ANY), Err(reason)),
    }
    Ok(())
}
