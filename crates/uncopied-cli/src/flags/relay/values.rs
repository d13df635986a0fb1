//! The values of the flags of `uncopied relay`, which are also those of its configuration file.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use uncopied::Mechanism;

use crate::flags::get::ByteRate;
use crate::flags::values::{TimeSpan, unix_path};

/// The largest weight of a target. The same as in HAProxy.
const MAX_WEIGHT: u32 = 256;
/// The longest name that DNS allows, in its usual notation (RFC 1035, section 2.3.4).
const MAX_NAME_BYTES: usize = 253;

/// Where a target is. Its `Display` text identifies the target in logs and metrics, and for
/// `source-hash`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TargetAddress {
    /// A TCP address.
    Ip(SocketAddr),
    /// The name of a host, and a TCP port.
    Name {
        /// The name, as the user wrote it.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket at a path.
    Unix(PathBuf),
}

impl FromStr for TargetAddress {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        if let Some(path) = unix_path(word) {
            return path.map(Self::Unix);
        }
        if let Ok(address) = word.parse::<SocketAddr>() {
            return match address.port() {
                0 => Err("port 0 cannot be connected to".to_owned()),
                _ => Ok(Self::Ip(address)),
            };
        }
        if word.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
            return Err("the port is missing".to_owned());
        }
        let Some((host, port)) = word.rsplit_once(':') else {
            return Err("expected HOST:PORT, IP:PORT, [IPv6]:PORT or unix:PATH".to_owned());
        };
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let port = match port.parse() {
            Ok(port @ 1..) if digits => port,
            _ => return Err(format!("'{port}' is not a port from 1 to 65535")),
        };
        match is_host_name(host) {
            true => Ok(Self::Name {
                host: host.to_owned(),
                port,
            }),
            false => Err(format!("'{host}' is neither a host name nor an IP address")),
        }
    }
}

/// Whether a word can be the name of a host. A name whose last label is a number is taken for a
/// mistyped IPv4 address, because resolvers accept forms such as 10.1 or 0x7f000001.
fn is_host_name(word: &str) -> bool {
    let labels = word.strip_suffix('.').unwrap_or(word).split('.');
    let is_label = |label: &str| {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(is_allowed)
    };
    let last = labels.clone().next_back().unwrap_or_default();
    word.len() <= MAX_NAME_BYTES
        && labels.clone().all(is_label)
        && !last.starts_with(|first: char| first.is_ascii_digit())
}

impl fmt::Display for TargetAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A target and its weight, given as `TARGET` or `TARGET=WEIGHT`. The default weight is 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WeightedTarget {
    /// Where the target is.
    pub(crate) address: TargetAddress,
    /// Its share of the connections, relative to that of the other targets: 1 to 256.
    pub(crate) weight: u32,
}

impl FromStr for WeightedTarget {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let is_number = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
        let Some((address, weight)) = word.rsplit_once('=').filter(|(_, w)| is_number(w)) else {
            return Ok(Self {
                address: word.parse()?,
                weight: 1,
            });
        };
        match weight.parse() {
            Ok(weight @ 1..=MAX_WEIGHT) => Ok(Self {
                address: address.parse()?,
                weight,
            }),
            _ => Err(format!("the weight must be from 1 to {MAX_WEIGHT}")),
        }
    }
}

/// Implements `FromStr` for enumerations of words.
macro_rules! words {
    ($($name:ty),*) => {$(
        impl FromStr for $name {
            type Err = String;

            fn from_str(word: &str) -> Result<Self, String> {
                <Self as ValueEnum>::from_str(word, false).map_err(|_| {
                    let words: Vec<_> = Self::value_variants()
                        .iter()
                        .filter_map(ValueEnum::to_possible_value)
                        .map(|value| value.get_name().to_owned())
                        .collect();
                    format!("expected one of {}", words.join(", "))
                })
            }
        }
    )*};
}

words!(
    Balance,
    Switch,
    AcceptProxy,
    SendProxy,
    RelayMechanism,
    RelayLogFormat
);

/// How the target of a connection is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Balance {
    /// In turn, by weight
    RoundRobin,
    /// The fewest open connections, relative to the weight
    LeastConnections,
    /// By the IP address of the client: the same target as long as it is up
    SourceHash,
}

/// A setting that is on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    /// On
    On,
    /// Off
    Off,
}

/// Which headers of the PROXY protocol clients must send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AcceptProxy {
    /// None: the first byte belongs to the stream
    Off,
    /// Version 1, a line of text
    V1,
    /// Version 2, which is binary
    V2,
    /// Version 1 or 2
    Any,
}

impl AcceptProxy {
    /// Returns the versions of which a header is expected. `None` if there is none.
    pub(crate) fn versions(self) -> Option<ProxyVersions> {
        match self {
            Self::Off => None,
            Self::V1 => Some(ProxyVersions::V1),
            Self::V2 => Some(ProxyVersions::V2),
            Self::Any => Some(ProxyVersions::Any),
        }
    }
}

/// The versions of the PROXY protocol that are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyVersions {
    /// Version 1 only.
    V1,
    /// Version 2 only.
    V2,
    /// Both versions.
    Any,
}

/// Which header of the PROXY protocol is sent to targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SendProxy {
    /// None
    Off,
    /// Version 1, a line of text
    V1,
    /// Version 2, which is binary
    V2,
}

impl SendProxy {
    /// Returns the version to send. `None` if no header is sent.
    pub(crate) fn version(self) -> Option<ProxyVersion> {
        match self {
            Self::Off => None,
            Self::V1 => Some(ProxyVersion::V1),
            Self::V2 => Some(ProxyVersion::V2),
        }
    }
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyVersion {
    /// A line of text.
    V1,
    /// The binary form.
    V2,
}

/// How bytes move from socket to socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RelayMechanism {
    /// Read and write small messages, splice bulk data
    Auto,
    /// Always splice, through a pipe
    Splice,
    /// Always read and write: two copies
    Copy,
}

impl RelayMechanism {
    /// Returns the only mechanism to use. `None` lets the library choose.
    pub(crate) fn forced(self) -> Option<Mechanism> {
        match self {
            Self::Auto => None,
            Self::Splice => Some(Mechanism::Splice),
            Self::Copy => Some(Mechanism::Copy),
        }
    }
}

/// The format of a relay's access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RelayLogFormat {
    /// No access log
    Off,
    /// One line of text per connection
    Text,
    /// One JSON object per line
    Json,
}

/// A time that can be switched off with `off` or 0, which are `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimeOrOff(pub(crate) Option<Duration>);

impl FromStr for TimeOrOff {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "off" => Ok(Self(None)),
            word => word.parse().map(|time: TimeSpan| Self(time.limit())),
        }
    }
}

/// The idle time after which TCP keep-alive probes a peer, or `off` or 0, which are `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeepAlive(pub(crate) Option<Duration>);

impl KeepAlive {
    /// The shortest and the longest time that the kernel accepts (tcp(7), `TCP_KEEPIDLE`).
    const RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(32_767);
}

impl FromStr for KeepAlive {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word.parse()? {
            TimeOrOff(Some(time)) if !Self::RANGE.contains(&time) => {
                Err("expected off, or a time from 1s to 32767s".to_owned())
            }
            TimeOrOff(time) => Ok(Self(time)),
        }
    }
}

/// A number of bytes per second, or `off`, which is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RateLimit(pub(crate) Option<u64>);

impl FromStr for RateLimit {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "off" => Ok(Self(None)),
            word => word.parse().map(|ByteRate(rate)| Self(Some(rate))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_documented_form_of_target_is_accepted() {
        let name = |host: &str, port| TargetAddress::Name {
            host: host.to_owned(),
            port,
        };
        for (word, address) in [
            (
                "192.0.2.1:80",
                TargetAddress::Ip("192.0.2.1:80".parse().unwrap()),
            ),
            ("[::1]:80", TargetAddress::Ip("[::1]:80".parse().unwrap())),
            ("db1:5432", name("db1", 5432)),
            ("db-1.example.org.:1", name("db-1.example.org.", 1)),
            ("_pg.x:65535", name("_pg.x", 65535)),
            (
                "unix:/run/a=b.sock",
                TargetAddress::Unix("/run/a=b.sock".into()),
            ),
        ] {
            assert_eq!(word.parse(), Ok(address.clone()), "{word}");
            assert_eq!(address.to_string(), word);
            for weight in [1, 7, 256] {
                let weighted: WeightedTarget = format!("{word}={weight}").parse().unwrap();
                assert_eq!(
                    weighted,
                    WeightedTarget {
                        address: address.clone(),
                        weight
                    }
                );
            }
        }
        assert_eq!("db:1".parse::<WeightedTarget>().unwrap().weight, 1);
    }

    #[test]
    fn mistyped_targets_are_refused() {
        for (word, reason) in [
            ("", "expected HOST:PORT"),
            ("db", "expected HOST:PORT"),
            ("5432", "expected HOST:PORT"),
            ("192.0.2.1", "the port is missing"),
            ("::1", "the port is missing"),
            ("[::1]", "the port is missing"),
            ("db:", "is not a port"),
            ("db:0", "is not a port"),
            ("db:+80", "is not a port"),
            ("db:65536", "is not a port"),
            ("db:80=", "is not a port"),
            ("192.0.2.1:0", "port 0"),
            (":80", "neither a host name nor an IP address"),
            ("a..b:80", "neither a host name nor an IP address"),
            ("a b:80", "neither a host name nor an IP address"),
            ("192.0.2.300:80", "neither a host name nor an IP address"),
            ("10.1:80", "neither a host name nor an IP address"),
            ("2130706433:80", "neither a host name nor an IP address"),
            ("0x7f000001:80", "neither a host name nor an IP address"),
            ("http://a:80", "neither a host name nor an IP address"),
            ("unix:", "expected a path"),
            ("db:80=0", "the weight must be from 1 to 256"),
            ("db:80=257", "the weight must be from 1 to 256"),
            ("db:80=99999999999", "the weight must be from 1 to 256"),
        ] {
            let error = word.parse::<WeightedTarget>().unwrap_err();
            assert!(error.contains(reason), "{word}: {error}");
        }
    }

    #[test]
    fn settings_can_be_switched_off() {
        let seconds = |n| Some(Duration::from_secs(n));
        for off in ["off", "0"] {
            assert_eq!(off.parse(), Ok(TimeOrOff(None)));
            assert_eq!(off.parse(), Ok(KeepAlive(None)));
        }
        assert_eq!("30s".parse(), Ok(TimeOrOff(seconds(30))));
        assert_eq!("1s".parse(), Ok(KeepAlive(seconds(1))));
        assert_eq!("32767s".parse(), Ok(KeepAlive(seconds(32_767))));
        for word in ["999ms", "32768s", "on"] {
            assert!(word.parse::<KeepAlive>().is_err(), "{word}");
        }
        assert!("on".parse::<TimeOrOff>().is_err());
        assert_eq!("off".parse(), Ok(RateLimit(None)));
        assert_eq!("10M".parse(), Ok(RateLimit(Some(10 << 20))));
        assert!("0".parse::<RateLimit>().is_err());
        assert_eq!(SendProxy::Off.version(), None);
        assert_eq!(AcceptProxy::Off.versions(), None);
        assert_eq!(AcceptProxy::Any.versions(), Some(ProxyVersions::Any));
    }

    #[test]
    fn words_are_listed_if_another_is_given() {
        assert_eq!("least-connections".parse(), Ok(Balance::LeastConnections));
        let error = "random".parse::<Balance>().unwrap_err();
        assert_eq!(
            error,
            "expected one of round-robin, least-connections, source-hash"
        );
        assert_eq!("splice".parse(), Ok(RelayMechanism::Splice));
        assert_eq!(
            RelayMechanism::Splice.forced(),
            Some(uncopied::Mechanism::Splice)
        );
        assert_eq!(RelayMechanism::Auto.forced(), None);
    }
}
