//! The flags of `uncopied get`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use http::{HeaderName, HeaderValue};

use super::values::{TimeSpan, header_value};

pub(super) const GET_HELP: &str = "\
Files:
  Without -o, a file is saved in the current directory under the last name in
  the path of its URL, or as index.html if the path ends with a slash. The
  bytes go to NAME.part, which is renamed when they are whole, checked and on
  the disk. NAME.part.json records what NAME.part holds, for -c. A file that
  exists is not replaced, unless -f or -c is given.

Retries:
  A lost connection, a timeout, and the statuses 408, 429, 500, 502, 503 and
  504 are retried, after a pause that doubles each time (--retry-wait) or that
  the server asks for (Retry-After, up to 5 minutes). The download goes on
  from the last byte if the server says that the file has not changed. A name
  that does not resolve and a refused connection are retried only after some
  bytes have arrived.

Environment:
  http_proxy, https_proxy (or HTTPS_PROXY), all_proxy (or ALL_PROXY)
                   URL of an HTTP proxy, such as http://user:pw@proxy:3128
  no_proxy (or NO_PROXY)
                   Hosts to connect to directly, separated by commas: a name
                   stands for itself and its subdomains, * for every host
  SSL_CERT_FILE, SSL_CERT_DIR
                   Certificates to trust instead of those of the system
  UNCOPIED_TUNING  File with the sizes from which each mechanism is used on
                   this machine

Times:
  500ms, 30s, 5m, 1h, 1d; a plain number is seconds; 0 disables a limit.

Other users of the machine can see the command line: put secrets into a file
and name it with --header @FILE.";

/// The flags of `uncopied get`.
#[derive(Args, Debug)]
pub(crate) struct GetFlags {
    /// URLs to download (http:// or https://)
    #[arg(value_name = "URL", required_unless_present = "input")]
    pub(crate) urls: Vec<String>,

    /// File with one URL per line ("-" is standard input); empty lines and lines that begin with
    /// "#" are skipped
    #[arg(long, short, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,

    /// File or directory to save to, or "-" for standard output; a directory that ends with "/" is
    /// created
    #[arg(long, short, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,

    /// Go on with a download that was interrupted, if the file has not changed on the server, and
    /// otherwise start afresh
    ///
    /// A file that is complete is fetched again only if the server has another length or another
    /// modification time.
    #[arg(long = "continue", short = 'c')]
    pub(crate) resume: bool,

    /// Replace a file that exists
    #[arg(long, short = 'f')]
    pub(crate) overwrite: bool,

    /// Number of connections for each file, each of which fetches other parts of it
    ///
    /// Needs a server that supports ranges and sends a strong ETag or a Last-Modified date, so that
    /// all parts are of one version of the file. Otherwise one connection is used.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) connections: u8,

    /// Number of URLs that are fetched at the same time
    #[arg(long, short = 'P', value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) parallel: u16,

    /// Checksum that the file must have, as sha256:HEX or blake3:HEX; only for a single URL
    #[arg(long, value_name = "SUM")]
    pub(crate) checksum: Option<Checksum>,

    /// Maximum number of bytes per second, for all downloads together, such as 500k or 10M
    #[arg(long, value_name = "RATE")]
    pub(crate) limit_rate: Option<ByteRate>,

    /// Header to add to every request, or @FILE with one header per line; repeatable
    ///
    /// Authorization and Cookie are not sent to another host, port or scheme if the server
    /// redirects there.
    #[arg(long, short = 'H', value_name = "NAME: VALUE")]
    pub(crate) header: Vec<HeaderSource>,

    /// File with certificates (PEM) to trust in addition to those of the system
    #[arg(long, value_name = "FILE")]
    pub(crate) cacert: Option<PathBuf>,

    /// Write to the disk without going through the page cache (O_DIRECT)
    #[arg(long)]
    pub(crate) direct: bool,

    /// Time limit for each URL, with all its retries
    #[arg(long, value_name = "TIME", default_value = "0")]
    pub(crate) max_time: TimeSpan,

    /// Time limit for a connection, with the TLS handshake
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub(crate) connect_timeout: TimeSpan,

    /// Give a connection up if the server has sent no byte for this long
    #[arg(long, value_name = "TIME", default_value = "60s")]
    pub(crate) read_timeout: TimeSpan,

    /// Number of retries without progress
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) retries: u32,

    /// Pause before the first retry; each further one is twice as long, up to 30 s
    #[arg(long, value_name = "TIME", default_value = "1s")]
    pub(crate) retry_wait: TimeSpan,

    /// Maximum number of redirects for each request
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) max_redirects: u32,

    /// Follow redirects from https:// to http://
    #[arg(long)]
    pub(crate) allow_downgrade: bool,

    /// Print a summary as JSON on standard output (on standard error with -o -)
    #[arg(long)]
    pub(crate) json: bool,

    /// Show no progress
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// The hash functions of `--checksum`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HashKind {
    Sha256,
    Blake3,
}

/// The checksum that a file must have. Both hash functions have digests of 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checksum {
    pub(crate) kind: HashKind,
    pub(crate) digest: [u8; 32],
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            HashKind::Sha256 => "sha256:",
            HashKind::Blake3 => "blake3:",
        })?;
        self.digest
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Checksum {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let (kind, digits) = match word.split_once(':') {
            Some(("sha256", digits)) => (HashKind::Sha256, digits),
            Some(("blake3", digits)) => (HashKind::Blake3, digits),
            _ => return Err("expected sha256:HEX or blake3:HEX".to_owned()),
        };
        let nibbles: Option<Vec<u32>> = digits.chars().map(|digit| digit.to_digit(16)).collect();
        let Some(nibbles) = nibbles.filter(|nibbles| nibbles.len() == 64) else {
            return Err("expected 64 hexadecimal digits after the colon".to_owned());
        };
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(nibbles.chunks_exact(2)) {
            // Each of the two is less than 16.
            *byte = (pair[0] << 4 | pair[1]) as u8;
        }
        Ok(Self { kind, digest })
    }
}

/// A number of bytes per second, at least 1. The units k, M and G are powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteRate(pub(crate) u64);

impl FromStr for ByteRate {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let digits = word.trim_end_matches(|c: char| !c.is_ascii_digit());
        let shift = match &word[digits.len()..] {
            "" => 0,
            "k" | "K" => 10,
            "m" | "M" => 20,
            "g" | "G" => 30,
            unit => return Err(format!("unknown unit '{unit}': use k, M or G")),
        };
        let number: u64 = digits
            .parse()
            .map_err(|_| "expected a number like 500k or 10M".to_owned())?;
        match number.checked_mul(1 << shift) {
            Some(rate @ 1..) => Ok(Self(rate)),
            Some(0) => Err("the minimum is 1".to_owned()),
            None => Err("the number is too large".to_owned()),
        }
    }
}

/// A header of requests, or the file that holds some.
#[derive(Clone)]
pub(crate) enum HeaderSource {
    Line(RequestHeader),
    File(PathBuf),
}

impl fmt::Debug for HeaderSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(header) => header.0.fmt(f),
            Self::File(path) => path.fmt(f),
        }
    }
}

impl FromStr for HeaderSource {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word.strip_prefix('@') {
            Some("") => Err("expected a file name after @".to_owned()),
            Some(path) => Ok(Self::File(path.into())),
            None => word.parse().map(Self::Line),
        }
    }
}

/// A header to add to every request, given as `Name: value`.
#[derive(Clone)]
pub(crate) struct RequestHeader(pub(crate) HeaderName, pub(crate) HeaderValue);

impl RequestHeader {
    /// Headers that decide how a response is framed, or which part of a file it holds.
    const OWN: [&'static str; 8] = [
        "connection",
        "content-length",
        "expect",
        "if-range",
        "range",
        "te",
        "transfer-encoding",
        "upgrade",
    ];
}

impl FromStr for RequestHeader {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| "expected NAME: VALUE or @FILE".to_owned())?;
        let name: HeaderName = name
            .parse()
            .map_err(|_| format!("'{name}' is not a header name"))?;
        if Self::OWN.contains(&name.as_str()) {
            return Err(format!("{name} is set by uncopied"));
        }
        Ok(Self(name, header_value(value.trim())?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn checksums_are_an_algorithm_and_64_digits() {
        let digits = "00ff".repeat(16);
        for kind in ["sha256", "blake3"] {
            let word = format!("{kind}:{digits}");
            let sum: Checksum = word.parse().unwrap();
            assert_eq!(sum.to_string(), word);
            assert_eq!(sum.digest[..2], [0, 0xff]);
        }
        let upper: Checksum = format!("sha256:{}", digits.to_uppercase()).parse().unwrap();
        assert_eq!(upper.digest[1], 0xff);
        for word in [
            digits.as_str(),
            "sha256:",
            "md5:00",
            "sha256:0g",
            &format!("sha256:{digits}0"),
        ] {
            assert!(word.parse::<Checksum>().is_err(), "{word}");
        }
    }

    #[test]
    fn rates_have_units_and_are_not_zero() {
        for (word, rate) in [
            ("1", 1),
            ("500k", 512_000),
            ("10M", 10 << 20),
            ("2G", 2 << 30),
        ] {
            assert_eq!(word.parse(), Ok(ByteRate(rate)), "{word}");
        }
        for word in [
            "",
            "0",
            "0k",
            "k",
            "1T",
            "-1",
            "1.5M",
            "99999999999999999999",
            "18446744073709551615G",
        ] {
            assert!(word.parse::<ByteRate>().is_err(), "{word}");
        }
    }

    #[test]
    fn headers_that_frame_a_message_are_refused() {
        let header: RequestHeader = "X-A: b: c ".parse().unwrap();
        assert_eq!(
            (header.0.as_str(), header.1.to_str().unwrap()),
            ("x-a", "b: c")
        );
        for word in [
            "X-A",
            "a b: c",
            "a: \x01",
            "Range: bytes=0-",
            "content-length: 0",
        ] {
            assert!(word.parse::<HeaderSource>().is_err(), "{word}");
        }
        assert!(matches!("@a".parse(), Ok(HeaderSource::File(_))));
        assert!("@".parse::<HeaderSource>().is_err());
    }
}
