//! The text of a tuning, and the file that holds it.

use std::env;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

use super::error::{TuningError, not_a_number, unknown_key};
use super::{COUNT, Tuning, index_of};

/// The environment variable that names the file.
const VARIABLE: &str = "UNCOPIED_TUNING";

/// The most bytes that a file may have. What [`Display`](fmt::Display) writes has about 1 KiB.
pub(super) const MAX_FILE_BYTES: u64 = 64 << 10;

/// What each threshold means, in the order of [`Tuning::KEYS`].
const MEANINGS: [&str; COUNT] = [
    "file to socket: sendfile and splice instead of copy",
    "file to socket, where sendfile and splice are refused: mmap_write instead of copy",
    "permanently frozen pages to socket: vmsplice instead of copy",
    "region to socket: vmsplice or a notified send instead of copy",
    "memory to a socket of another machine: msg_zerocopy or send_zc instead of copy",
    "socket to memory: map_receive instead of copy",
    "socket to socket: splice instead of copy, for reads",
    "socket to file: splice instead of copy",
];

impl Tuning {
    /// Reads thresholds from text with a line `key = bytes` or `key = never` for each of them. The
    /// keys are those of [`KEYS`](Self::KEYS); those that are absent keep their default. A `#`
    /// begins a comment. [`Display`](fmt::Display) writes such text.
    ///
    /// # Errors
    ///
    /// [`TuningError::Line`]: a line has another form, an unknown key, a value that is not a whole
    /// number, or a key that an earlier line has as well.
    pub fn from_text(text: &str) -> Result<Self, TuningError> {
        let mut values = Self::default().values();
        let mut lines_of_keys = [None; COUNT];
        for (line, content) in (1..).zip(text.lines()) {
            let failed = |cause| TuningError::Line {
                path: None,
                line,
                cause,
            };
            let content = content.split('#').next().unwrap_or_default().trim();
            if content.is_empty() {
                continue;
            }
            let Some((key, value)) = content.split_once('=') else {
                let form = "the form of a line is \"key = bytes\" or \"key = never\"";
                return Err(failed(form.to_owned()));
            };
            let (key, value) = (key.trim_end(), value.trim_start());
            let index = index_of(key).ok_or_else(|| failed(unknown_key(key)))?;
            if let Some(earlier) = lines_of_keys[index].replace(line) {
                return Err(failed(format!("line {earlier} has {key} as well")));
            }
            values[index] = parse_bytes(value).ok_or_else(|| failed(not_a_number(value)))?;
        }
        Ok(Self::of_values(values))
    }

    /// Reads thresholds from a file whose content is that of [`from_text`](Self::from_text).
    ///
    /// # Errors
    ///
    /// - [`TuningError::Read`]: the file cannot be opened or read.
    /// - [`TuningError::NotAFile`], [`TuningError::TooLong`], [`TuningError::NotText`]
    /// - [`TuningError::Line`], with the file and the line
    pub fn load(path: impl AsRef<Path>) -> Result<Self, TuningError> {
        let path = path.as_ref();
        let failed = |source: io::Error| TuningError::Read {
            path: path.to_owned(),
            source,
        };
        // Without O_NONBLOCK, opening a FIFO would wait for a writer.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.union(OFlags::NOCTTY).bits() as i32)
            .open(path)
            .map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            let path = path.to_owned();
            return Err(TuningError::NotAFile { path });
        }
        let mut content = Vec::new();
        file.take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut content)
            .map_err(failed)?;
        if content.len() as u64 > MAX_FILE_BYTES {
            let path = path.to_owned();
            return Err(TuningError::TooLong { path });
        }
        let text = String::from_utf8(content).map_err(|_| TuningError::NotText {
            path: path.to_owned(),
        })?;
        Self::from_text(&text).map_err(|error| error.in_file(path))
    }

    /// Reads thresholds from the file that the environment variable `UNCOPIED_TUNING` names. `None`
    /// if the variable is unset or empty. This is for programs that would rather not start than run
    /// with the defaults if the file is wrong.
    ///
    /// # Errors
    ///
    /// See [`load`](Self::load).
    pub fn from_environment() -> Result<Option<Self>, TuningError> {
        match env::var_os(VARIABLE) {
            Some(path) if !path.is_empty() => Self::load(path).map(Some),
            _ => Ok(None),
        }
    }
}

fn parse_bytes(value: &str) -> Option<u64> {
    if value == "never" {
        return Some(Tuning::NEVER);
    }
    // `parse` would accept a sign.
    let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| value.parse().ok()).flatten()
}

/// Writes the text that [`Tuning::from_text`] reads, with a comment for each threshold.
impl fmt::Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = Self::KEYS.iter().zip(MEANINGS).zip(self.values());
        for ((key, meaning), bytes) in rows {
            writeln!(f, "# {meaning}, from this many bytes on")?;
            match bytes {
                Self::NEVER => writeln!(f, "{key} = never")?,
                bytes => writeln!(f, "{key} = {bytes}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cause(text: &str) -> (usize, String) {
        match Tuning::from_text(text) {
            Err(TuningError::Line { line, cause, .. }) => (line, cause),
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn lines_of_a_tuning() {
        let changed = Tuning {
            region_min_bytes: 5,
            vmsplice_min_bytes: Tuning::NEVER,
            ..Tuning::default()
        };
        for text in [
            "region_min_bytes = 5\nvmsplice_min_bytes = never",
            "\n# of a machine\r\n\tregion_min_bytes=5 # small\r\nvmsplice_min_bytes =never\r\n",
        ] {
            assert_eq!(Tuning::from_text(text).expect("read"), changed, "{text:?}");
        }
        for text in ["", "\n", "# region_min_bytes = 5"] {
            let read = Tuning::from_text(text).expect("read");
            assert_eq!(read, Tuning::default(), "{text:?}");
        }
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (text, line, words) in [
            ("region_min_bytes", 1, "the form of a line"),
            ("\nregion_min_bytes: 5", 2, "the form of a line"),
            ("= 5", 1, "\"\" is no threshold"),
            ("Region_min_bytes = 5", 1, "is no threshold; they are sendf"),
            ("region = \u{1b}[31m", 1, "\"region\" is no"),
            ("region_min_bytes =", 1, "\"\" is not a number"),
            ("region_min_bytes = -1", 1, "\"-1\" is not"),
            ("region_min_bytes = +1", 1, "\"+1\" is not"),
            ("region_min_bytes = 64 KiB", 1, "\"64 KiB\" is not"),
            ("region_min_bytes = 1e3", 1, "\"1e3\" is not"),
            ("region_min_bytes = Never", 1, "\"Never\" is not"),
            ("region_min_bytes = 18446744073709551616", 1, "is not a"),
            ("region_min_bytes = \u{1b}[31m", 1, r#""\u{1b}[31m" is"#),
            (
                "region_min_bytes = 1\n#\nregion_min_bytes = 1",
                3,
                "line 1 has region_min_bytes as well",
            ),
        ] {
            let (at, cause) = cause(text);
            assert_eq!(at, line, "{text:?}");
            assert!(cause.contains(words), "{text:?}: {cause}");
        }
        let (_, cause) = cause(&format!("{} = 1", "long".repeat(1000)));
        assert!(cause.len() < 400, "{cause}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(values: [u64; COUNT], nevers: [bool; COUNT]) {
            let mut values = values;
            for (value, never) in values.iter_mut().zip(nevers) {
                *value = if never { Tuning::NEVER } else { *value };
            }
            let tuning = Tuning::of_values(values);
            let text = tuning.to_string();
            prop_assert_eq!(text.lines().filter(|it| it.starts_with('#')).count(), COUNT);
            prop_assert_eq!(Tuning::from_text(&text).expect("read"), tuning);
        }

        #[test]
        fn no_text_causes_a_panic(text: String) {
            let _ = Tuning::from_text(&text);
        }
    }
}
