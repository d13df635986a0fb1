//! The configuration file.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, Visitor};
use toml::Spanned;

use crate::error::kernel_text;
use crate::flags::{
    AcceptProxy, Balance, KeepAlive, ListenAddress, RateLimit, RelayFlags, RelayLogFormat,
    RelayMechanism, RelayProcessSettings, RelaySettings, SendProxy, SocketMode, Switch, TimeOrOff,
    TimeSpan, WeightedTarget,
};

use super::{ListenerConfig, ProcessConfig, RelayConfig, first_duplicate};

/// The largest file that is read. A line per target would allow about 20,000 targets.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {}; name a readable file with --config", .path.display(), kernel_text(.source))]
    Read {
        /// The file.
        path: PathBuf,
        /// The underlying I/O error.
        source: io::Error,
    },
    /// The file has a mistake.
    #[error("{}:{line}: {problem}; change this line, and check the file with --check", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The number of the line, from 1.
        line: usize,
        /// What is wrong, beginning with the key if it is known.
        problem: String,
    },
    /// Two targets on the command line are the same.
    #[error("the target {0} is given twice; give it once, with a weight ({0}=2)")]
    DuplicateTarget(String),
}

/// Reads a file, and combines it with the flags.
pub(super) fn load(path: &Path, flags: &RelayFlags) -> Result<RelayConfig, ConfigError> {
    let text = read(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(&text, flags).map_err(|Mistake { at, problem }| ConfigError::File {
        path: path.to_owned(),
        line: 1 + text.as_bytes()[..at]
            .iter()
            .filter(|b| **b == b'\n')
            .count(),
        problem,
    })
}

fn read(path: &Path) -> io::Result<String> {
    let length = fs::metadata(path)?.len();
    if length > MAX_FILE_BYTES {
        let text = format!("the file has {length} bytes, more than {MAX_FILE_BYTES}");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    fs::read_to_string(path)
}

/// A mistake in the text of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    /// The position, in bytes. At most the length of the text.
    pub(super) at: usize,
    /// What is wrong, beginning with the key if it is known.
    pub(super) problem: String,
}

/// Makes a configuration from the text of a file and from the flags.
pub(super) fn parse(text: &str, flags: &RelayFlags) -> Result<RelayConfig, Mistake> {
    let document: Document = toml::from_str(text).map_err(|error| Mistake::of(error, text))?;
    let process = flags.process.clone().or(document.process());
    let shared = document.settings();
    if document.listener.is_empty() {
        let problem = "there is no [[listener]]; add one, with listen and targets".to_owned();
        let at = text.len();
        return Err(Mistake { at, problem });
    }
    let mut listeners: Vec<ListenerConfig> = Vec::with_capacity(document.listener.len());
    for listener in document.listener {
        let settings = listener.settings();
        let settings = flags.settings.clone().or(settings).or(shared.clone());
        let at = listener.listen.span().start;
        let Word(listen) = listener.listen.into_inner();
        if listeners.iter().any(|other| other.listen == listen) {
            let problem = format!("listener.listen: another listener has the address {listen}");
            return Err(Mistake { at, problem });
        }
        let targets = targets(listener.targets)?;
        listeners.push(ListenerConfig::new(listen, targets, settings));
    }
    let process = ProcessConfig::new(process);
    Ok(RelayConfig { listeners, process })
}

type SpannedTargets = Spanned<Vec<Spanned<Word<WeightedTarget>>>>;

fn targets(list: SpannedTargets) -> Result<Vec<WeightedTarget>, Mistake> {
    let at = list.span().start;
    let list = list.into_inner();
    if list.is_empty() {
        let problem = "listener.targets: the list is empty; name at least one target".to_owned();
        return Err(Mistake { at, problem });
    }
    let addresses = list.iter().map(|target| &target.get_ref().0.address);
    if let Some(twice) = first_duplicate(addresses) {
        let problem = format!("listener.targets: {twice} is given twice; give it a weight instead");
        let mut places = list
            .iter()
            .filter(|target| target.get_ref().0.address == *twice);
        let at = places.nth(1).map_or(at, |second| second.span().start);
        return Err(Mistake { at, problem });
    }
    Ok(list
        .into_iter()
        .map(|target| target.into_inner().0)
        .collect())
}

impl Mistake {
    fn of(mut error: toml::de::Error, text: &str) -> Self {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        // Without its input, the error prints the key after the message instead of the line.
        error.set_input(None);
        let message = error.message().replace('`', "'");
        let whole = error.to_string();
        let key = whole
            .lines()
            .last()
            .and_then(|line| line.strip_prefix("in `")?.strip_suffix('`'));
        let problem = match key {
            Some(key) => format!("{key}: {message}"),
            None => message,
        };
        Self { at, problem }
    }
}

/// A value that is parsed like that of a flag. A number and a boolean stand for the same words.
struct Word<T>(T);

impl<'de, T> Deserialize<'de> for Word<T>
where
    T: FromStr<Err = String>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(WordVisitor(std::marker::PhantomData))
            .map(Self)
    }
}

struct WordVisitor<T>(std::marker::PhantomData<T>);

impl<T> Visitor<'_> for WordVisitor<T>
where
    T: FromStr<Err = String>,
{
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a number or a boolean, like the value of the flag")
    }

    fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<T, E> {
        word.parse().map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
        number.to_string().parse().map_err(E::custom)
    }

    fn visit_bool<E: serde::de::Error>(self, is_on: bool) -> Result<T, E> {
        let word = if is_on { "on" } else { "off" };
        word.parse().map_err(E::custom)
    }
}

/// Deserializes a setting that is parsed like the value of a flag.
fn word<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = String>,
{
    Word::deserialize(deserializer).map(|Word(value)| Some(value))
}

/// Deserializes a number within the bounds of its flag.
fn number<'de, D, const MAX: u32>(deserializer: D) -> Result<Option<u32>, D::Error>
where
    D: Deserializer<'de>,
{
    match i64::deserialize(deserializer)? {
        number if (1..=i64::from(MAX)).contains(&number) => Ok(Some(number as u32)),
        number => Err(D::Error::custom(format!("{number} is not in 1..={MAX}"))),
    }
}

/// Defines a table of the file that has the settings of a listener, besides its own keys. (With
/// `#[serde(flatten)]`, unknown keys would not be found, and errors would have no position.)
macro_rules! table_with_settings {
    ($(#[$meta:meta])* struct $name:ident { $($own:tt)* }) => {
        $(#[$meta])*
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields)]
        struct $name {
            $($own)*
            #[serde(default, deserialize_with = "word")]
            balance: Option<Balance>,
            #[serde(default, deserialize_with = "word")]
            health_interval: Option<TimeOrOff>,
            #[serde(default, deserialize_with = "word")]
            health_timeout: Option<TimeSpan>,
            #[serde(default, deserialize_with = "number::<_, 1000>")]
            rise: Option<u32>,
            #[serde(default, deserialize_with = "number::<_, 1000>")]
            fall: Option<u32>,
            #[serde(default, deserialize_with = "word")]
            connect_timeout: Option<TimeSpan>,
            #[serde(default, deserialize_with = "word")]
            idle_timeout: Option<TimeSpan>,
            #[serde(default, deserialize_with = "word")]
            half_close_timeout: Option<TimeSpan>,
            #[serde(default, deserialize_with = "word")]
            keepalive: Option<KeepAlive>,
            #[serde(default, deserialize_with = "word")]
            nodelay: Option<Switch>,
            #[serde(default, deserialize_with = "word")]
            accept_proxy: Option<AcceptProxy>,
            #[serde(default, deserialize_with = "word")]
            send_proxy: Option<SendProxy>,
            #[serde(default, deserialize_with = "word")]
            mechanism: Option<RelayMechanism>,
            #[serde(default, deserialize_with = "word")]
            limit_rate: Option<RateLimit>,
            #[serde(default, deserialize_with = "word")]
            resolve_interval: Option<TimeSpan>,
        }

        impl $name {
            fn settings(&self) -> RelaySettings {
                RelaySettings {
                    balance: self.balance,
                    health_interval: self.health_interval,
                    health_timeout: self.health_timeout,
                    rise: self.rise.map(|rise| rise as u16),
                    fall: self.fall.map(|fall| fall as u16),
                    connect_timeout: self.connect_timeout,
                    idle_timeout: self.idle_timeout,
                    half_close_timeout: self.half_close_timeout,
                    keepalive: self.keepalive,
                    nodelay: self.nodelay,
                    accept_proxy: self.accept_proxy,
                    send_proxy: self.send_proxy,
                    mechanism: self.mechanism,
                    limit_rate: self.limit_rate,
                    resolve_interval: self.resolve_interval,
                }
            }
        }
    };
}

table_with_settings! {
    /// The whole file.
    struct Document {
        #[serde(default)]
        listener: Vec<Listener>,
        #[serde(default, deserialize_with = "number::<_, 10_000_000>")]
        max_connections: Option<u32>,
        #[serde(default, deserialize_with = "number::<_, 1024>")]
        threads: Option<u32>,
        #[serde(default, deserialize_with = "word")]
        grace: Option<TimeSpan>,
        #[serde(default, deserialize_with = "word")]
        access_log: Option<RelayLogFormat>,
        access_log_file: Option<PathBuf>,
        #[serde(default, deserialize_with = "word")]
        metrics: Option<ListenAddress>,
        #[serde(default, deserialize_with = "word")]
        socket_mode: Option<SocketMode>,
        #[serde(default, deserialize_with = "word")]
        reuse_port: Option<Switch>,
    }
}

table_with_settings! {
    /// One `[[listener]]`.
    struct Listener {
        listen: Spanned<Word<ListenAddress>>,
        targets: SpannedTargets,
    }
}

impl Document {
    fn process(&self) -> RelayProcessSettings {
        RelayProcessSettings {
            max_connections: self.max_connections,
            // At most 1024.
            threads: self.threads.map(|threads| threads as u16),
            grace: self.grace,
            access_log: self.access_log,
            access_log_file: self.access_log_file.clone(),
            metrics: self.metrics.clone(),
            socket_mode: self.socket_mode,
            reuse_port: self.reuse_port,
        }
    }
}
