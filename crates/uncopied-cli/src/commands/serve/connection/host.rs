//! Checks the grammar of a host and port.

use std::net::Ipv6Addr;

/// Whether `value` is `host [":" port]` as in RFC 9110, section 7.2. An empty host is accepted,
/// because RFC 9112, section 3.2, has clients send one if the target has no authority.
pub(super) fn is_host(value: &[u8]) -> bool {
    let (host, port) = match value {
        [b'[', rest @ ..] => {
            let Some(end) = rest.iter().position(|byte| *byte == b']') else {
                return false;
            };
            let (literal, rest) = (&rest[..end], &rest[end + 1..]);
            return is_ip_literal(literal)
                && match rest {
                    [] => true,
                    [b':', port @ ..] => is_port(port),
                    _ => false,
                };
        }
        _ => match value.iter().position(|byte| *byte == b':') {
            Some(colon) => (&value[..colon], &value[colon + 1..]),
            None => (value, &b""[..]),
        },
    };
    is_name(host) && is_port(port)
}

/// Whether `port` consists of digits. It may be empty.
fn is_port(port: &[u8]) -> bool {
    port.iter().all(u8::is_ascii_digit)
}

/// Whether `name` is a `reg-name` of RFC 3986, section 3.2.2. IPv4 addresses are such names.
fn is_name(name: &[u8]) -> bool {
    let mut rest = name;
    while let Some((byte, after)) = rest.split_first() {
        rest = match byte {
            b'%' => match after {
                [a, b, after @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => after,
                _ => return false,
            },
            b'-' | b'.' | b'_' | b'~' => after,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' => after,
            _ if byte.is_ascii_alphanumeric() => after,
            _ => return false,
        };
    }
    true
}

/// Whether `literal`, the text between brackets, is an IPv6 address, or an address of a later
/// version (`IPvFuture`).
fn is_ip_literal(literal: &[u8]) -> bool {
    if let [b'v' | b'V', rest @ ..] = literal {
        let mut parts = rest.splitn(2, |byte| *byte == b'.');
        let (version, address) = (parts.next(), parts.next());
        let is_version = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_hexdigit);
        let is_address = |text: &[u8]| {
            let is_allowed = |byte: &u8| *byte == b':' || *byte != b'%' && is_name(&[*byte]);
            !text.is_empty() && text.iter().all(is_allowed)
        };
        return version.is_some_and(is_version) && address.is_some_and(is_address);
    }
    str::from_utf8(literal).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_follow_the_grammar() {
        for valid in [
            "a",
            "a.example:80",
            "127.0.0.1",
            "[::1]:80",
            "[::1]",
            "a:",
            "a%20b",
            "",
            ":80",
            "[v1.a:b]",
            "a_b~c",
        ] {
            assert!(is_host(valid.as_bytes()), "{valid}");
        }
        for bad in [
            "user@a",
            "a/b",
            "a b",
            "[::1",
            "a:b",
            "%zz",
            "http://a/",
            "::1",
            "a:80:80",
            "[a]",
            "[::1]80",
            "a?b",
            "a#b",
            "%4",
            "\u{e4}",
            "[v.a]",
            "[]",
        ] {
            assert!(!is_host(bad.as_bytes()), "{bad}");
        }
    }
}
