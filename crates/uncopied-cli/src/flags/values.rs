//! Parsing and checking the values of flags.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};

/// The longest accepted time. The limit keeps arithmetic on `Instant`s from overflowing.
const MAX_TIME_SPAN: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A duration given on the command line. For most flags, 0 means "no limit".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimeSpan(pub(crate) Duration);

impl TimeSpan {
    /// Returns the duration as a limit: `None`, which means "no limit", if the duration is 0.
    pub(crate) fn limit(self) -> Option<Duration> {
        (!self.0.is_zero()).then_some(self.0)
    }
}

impl FromStr for TimeSpan {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let digits = word.trim_end_matches(|c: char| !c.is_ascii_digit());
        let number: u64 = digits
            .parse()
            .map_err(|_| "expected a time like 500ms, 30s, 5m or 1h".to_owned())?;
        let unit_millis = match &word[digits.len()..] {
            "ms" => 1,
            "" | "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            unit => return Err(format!("unknown unit '{unit}': use ms, s, m, h or d")),
        };
        let time = number.checked_mul(unit_millis).map(Duration::from_millis);
        match time {
            Some(time) if time <= MAX_TIME_SPAN => Ok(Self(time)),
            _ => Err("the maximum is 365d".to_owned()),
        }
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let units = [
            ("d", 86_400_000),
            ("h", 3_600_000),
            ("m", 60_000),
            ("s", 1_000),
        ];
        // The largest unit that divides the time, except that 0 is in seconds.
        let (unit, size) = match millis {
            0 => ("s", 1_000),
            _ => *units
                .iter()
                .find(|(_, size)| millis.is_multiple_of(*size))
                .unwrap_or(&("ms", 1)),
        };
        write!(f, "{} {unit}", millis / size)
    }
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ListenAddress {
    /// One TCP address.
    Tcp(SocketAddr),
    /// A port on all addresses of this machine, IPv6 and IPv4, with a single socket.
    AllInterfaces(u16),
    /// A Unix socket at a path.
    Unix(PathBuf),
}

/// The permissions of the file of a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocketMode(pub(crate) u32);

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let is_octal = !word.is_empty() && word.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
        match u32::from_str_radix(word, 8) {
            Ok(mode) if is_octal && mode <= 0o777 => Ok(Self(mode)),
            _ => Err("expected an octal number up to 777, for example 660".to_owned()),
        }
    }
}

impl Default for ListenAddress {
    fn default() -> Self {
        Self::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)))
    }
}

/// Returns the path of `unix:PATH`, which must not be empty. `None` if the word begins otherwise.
pub(super) fn unix_path(word: &str) -> Option<Result<PathBuf, String>> {
    let path = word.strip_prefix("unix:")?;
    Some(match path {
        "" => Err("expected a path after unix:".to_owned()),
        path => Ok(path.into()),
    })
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        if let Some(path) = unix_path(word) {
            return path.map(Self::Unix);
        }
        if let Ok(address) = word.parse() {
            return Ok(Self::Tcp(address));
        }
        if let Ok(port) = word.parse() {
            return Ok(Self::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
        }
        if let Some(Ok(port)) = word.strip_prefix(':').map(str::parse) {
            return Ok(Self::AllInterfaces(port));
        }
        Err(if word.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
            "the port is missing".to_owned()
        } else {
            "expected IP:PORT, [IPv6]:PORT, PORT (loopback), :PORT (all addresses) or unix:PATH"
                .to_owned()
        })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::AllInterfaces(port) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port)).fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A header to add to every response, given as `Name: value`.
#[derive(Clone, Debug)]
pub(crate) struct HeaderLine(pub(crate) HeaderName, pub(crate) HeaderValue);

impl FromStr for HeaderLine {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| "expected NAME: VALUE".to_owned())?;
        let name: HeaderName = name
            .parse()
            .map_err(|_| format!("'{name}' is not a header name"))?;
        // Refuse the headers that frame a response, because the server sets them itself. With a
        // wrong length or transfer coding, a client would mistake part of one response for the
        // next.
        if ["content-length", "transfer-encoding", "connection"].contains(&name.as_str()) {
            return Err(format!("{name} is set by the server"));
        }
        let value = header_value(value.trim())?;
        Ok(Self(name, value))
    }
}

/// Parses the value of a header, which may contain only visible characters, spaces and tabs.
pub(crate) fn header_value(value: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(value).map_err(|_| {
        "a header value may contain only visible characters, spaces and tabs".to_owned()
    })
}

/// The file to send with an error status, given as `CODE=FILE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ErrorPage(pub(crate) StatusCode, pub(crate) PathBuf);

impl FromStr for ErrorPage {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let Some((code, file)) = word.split_once('=').filter(|(_, file)| !file.is_empty()) else {
            return Err("expected CODE=FILE, for example 404=404.html".to_owned());
        };
        let status = code
            .parse()
            .map_err(|_| format!("'{code}' is not an HTTP status"))?;
        Ok(Self(status, file.into()))
    }
}

/// The media type of an extension, given as `EXT=TYPE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExtensionType(pub(crate) String, pub(crate) HeaderValue);

impl FromStr for ExtensionType {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let is_complete = |(extension, media_type): &(&str, &str)| {
            let extension = extension.trim_start_matches('.');
            !extension.is_empty() && !extension.contains('/') && media_type.contains('/')
        };
        let Some((extension, media_type)) = word.split_once('=').filter(is_complete) else {
            return Err("expected EXT=TYPE, for example glb=model/gltf-binary".to_owned());
        };
        Ok(Self(extension.to_owned(), header_value(media_type)?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn times_have_units_and_a_maximum() {
        for (word, millis) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("30", 30_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("365d", 31_536_000_000),
            ("0", 0),
        ] {
            assert_eq!(
                word.parse(),
                Ok(TimeSpan(Duration::from_millis(millis))),
                "{word}"
            );
        }
        for word in [
            "",
            "s",
            "-1",
            "1.5s",
            "30 s",
            "1w",
            "366d",
            "18446744073709551615h",
            "٣s",
            "1é",
        ] {
            assert!(word.parse::<TimeSpan>().is_err(), "{word}");
        }
        assert_eq!("0".parse::<TimeSpan>().unwrap().limit(), None);
        for (word, text) in [
            ("30s", "30 s"),
            ("90s", "90 s"),
            ("60s", "1 m"),
            ("1500ms", "1500 ms"),
            ("24h", "1 d"),
        ] {
            assert_eq!(word.parse::<TimeSpan>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn socket_modes_are_octal() {
        assert_eq!("660".parse(), Ok(SocketMode(0o660)));
        assert_eq!("0777".parse(), Ok(SocketMode(0o777)));
        for word in ["", "+7", "8", "1000", "rw", "0o660"] {
            assert!(word.parse::<SocketMode>().is_err(), "{word}");
        }
    }

    #[test]
    fn every_documented_form_of_address_is_accepted() {
        let tcp = |address: &str| ListenAddress::Tcp(address.parse().unwrap());
        for (word, address) in [
            ("127.0.0.1:80", tcp("127.0.0.1:80")),
            ("[::1]:8080", tcp("[::1]:8080")),
            ("8081", tcp("127.0.0.1:8081")),
            (":8082", ListenAddress::AllInterfaces(8082)),
            (
                "unix:/run/a.sock",
                ListenAddress::Unix("/run/a.sock".into()),
            ),
        ] {
            assert_eq!(word.parse(), Ok(address), "{word}");
        }
        for word in [
            "",
            "unix:",
            "127.0.0.1",
            "::1",
            "[::1]",
            "host:80",
            ":70000",
            "65536",
        ] {
            assert!(word.parse::<ListenAddress>().is_err(), "{word}");
        }
    }

    #[test]
    fn headers_and_error_pages_are_validated() {
        let line: HeaderLine = "X-A: b: c ".parse().unwrap();
        assert_eq!((line.0.as_str(), line.1.to_str().unwrap()), ("x-a", "b: c"));
        for word in ["X-A", "a b: c", ": c", "a: \x01", "Content-Length: 3"] {
            assert!(word.parse::<HeaderLine>().is_err(), "{word}");
        }
        let page = ErrorPage(StatusCode::NOT_FOUND, "a=b.html".into());
        assert_eq!("404=a=b.html".parse(), Ok(page));
        let own = ExtensionType("tar.x".into(), HeaderValue::from_static("a/b; c=d"));
        assert_eq!("tar.x=a/b; c=d".parse(), Ok(own));
        for word in [
            "", "x", "x=", "=a/b", ".=a/b", "x=text", "x/y=a/b", "x=a/\n",
        ] {
            assert!(word.parse::<ExtensionType>().is_err(), "{word}");
        }
        for word in ["404", "404=", "x=a", "40=a"] {
            assert!(word.parse::<ErrorPage>().is_err(), "{word}");
        }
    }
}
