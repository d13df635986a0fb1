//! The parts that the pages of all comparisons have, and where pages go.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use crate::entrants::Trouble;
use crate::error::{Context, Error};
use crate::machine;
use crate::table::{Spread, dash, markdown, strings, two_digits};

/// Where the report goes, if anywhere: to `out`, or else into a directory of this day below
/// `benchmarks`, unless the run was cut down.
pub(crate) fn directory(
    out: Option<&Path>,
    is_cut_down: bool,
    name: impl FnOnce() -> String,
) -> Result<Option<PathBuf>, Error> {
    if let Some(out) = out {
        return Ok(Some(out.to_owned()));
    }
    if is_cut_down {
        return Ok(None);
    }
    let directory = format!("{}-{}", machine::today()?, name());
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let benchmarks = workspace.unwrap_or(Path::new(".")).join("benchmarks");
    Ok(Some(benchmarks.join(directory)))
}

/// An error if the name cannot be part of a directory's.
pub(crate) fn check_name(name: Option<&str>) -> Result<(), Error> {
    match name {
        Some(name) if name.is_empty() || name.contains('/') => {
            Err(Error::Usage("--name must be part of a file name".into()))
        }
        Some(_) | None => Ok(()),
    }
}

/// Prints the page, and writes it with the raw data into `directory`, if there is one.
pub(crate) fn publish(directory: Option<&Path>, page: &str, raw: &str) -> Result<(), Error> {
    print_all(page)?;
    let Some(directory) = directory else {
        return Ok(());
    };
    fs::create_dir_all(directory).context(|| format!("cannot make {}", directory.display()))?;
    for (name, text) in [("README.md", page), ("raw.csv", raw)] {
        let path = directory.join(name);
        fs::write(&path, text).context(|| format!("cannot write {}", path.display()))?;
    }
    eprintln!("compare: wrote {}", directory.display());
    Ok(())
}

/// Prints to standard output; a reader that has seen enough is not an error.
fn print_all(text: &str) -> Result<(), Error> {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context(|| "cannot print".into())
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Says on standard error that figures of a debug build are none.
pub(crate) fn warn_of_debug_build() {
    if cfg!(debug_assertions) {
        eprintln!("compare: this is a debug build: its figures mean nothing, use --release");
    }
}

/// How the run was made: the command, the `method` in words, the machine, and the congestion control.
pub(crate) fn head(
    title: &str,
    method: &str,
    facts: &[(&'static str, String)],
    congestion: &str,
) -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut page = format!(
        "# {title}\n\n    cargo run --release -p compare -- {}\n\n{method}\n\n",
        arguments.join(" ")
    );
    if cfg!(debug_assertions) {
        page += "**A debug build: these figures mean nothing.**\n\n";
    }
    let mut rows: Vec<Vec<String>> = facts
        .iter()
        .map(|(name, value)| vec![(*name).to_owned(), value.clone()])
        .collect();
    rows.push(vec![
        "Congestion control".to_owned(),
        format!("{congestion}, both sides"),
    ]);
    page += &markdown(&strings(&["machine", ""]), &rows);
    page.push('\n');
    page
}

/// One contender in the list: what it is, the version and the command if it could be prepared, and
/// what went wrong.
pub(crate) fn contender(
    name: &str,
    about: &str,
    launch: Option<(&str, &str)>,
    trouble: Option<&Trouble>,
) -> String {
    let mut line = format!("- **{name}**: {about}.");
    if let Some((version, command)) = launch {
        line += &format!(" {version}. `{command}`");
    }
    if let Some(trouble) = trouble {
        line += &format!(" {}", trouble.text());
    }
    line.push('\n');
    line
}

/// A table for one measure: a row for each size, a column for each pair of contenders.
pub(crate) fn ratios(
    measure: &str,
    better: &str,
    sizes: impl Iterator<Item = (u64, String)>,
    pairs: &[(&str, &str)],
    ratio: impl Fn(u64, &str, &str) -> Option<Spread>,
) -> String {
    let mut header = vec![format!("{measure} ({better} is better)")];
    header.extend(
        pairs
            .iter()
            .map(|(above, below)| format!("{above} ÷ {below}")),
    );
    let rows: Vec<Vec<String>> = sizes
        .map(|(size, text)| {
            let mut row = vec![text];
            row.extend(pairs.iter().map(|(above, below)| {
                ratio(size, above, below).map_or_else(dash, |ratio| ratio.text(two_digits))
            }));
            row
        })
        .collect();
    markdown(&header, &rows) + "\n"
}

/// Raw data: one value a line.
pub(crate) struct Raw(String);

impl Raw {
    /// With its header.
    pub(crate) fn new() -> Self {
        Self("round,contender,size_bytes,measure,value\n".to_owned())
    }

    /// Adds the values of one measurement.
    pub(crate) fn push(
        &mut self,
        round: usize,
        contender: &str,
        size: u64,
        values: impl IntoIterator<Item = (&'static str, f64)>,
    ) {
        for (key, value) in values {
            // Writing to a String does not fail.
            let _ = writeln!(self.0, "{round},{contender},{size},{key},{value}");
        }
    }

    /// The file.
    pub(crate) fn text(self) -> String {
        self.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_was_cut_down_is_only_written_where_it_is_told_to() {
        let name = || "here".to_owned();
        assert_eq!(directory(None, true, name).unwrap(), None);
        let out = Path::new("/somewhere");
        assert_eq!(directory(Some(out), true, name).unwrap().unwrap(), out);
        let whole = directory(None, false, name).unwrap().unwrap();
        assert!(whole.to_string_lossy().ends_with("-here"), "{whole:?}");
        assert!(check_name(Some("a/b")).is_err());
        assert!(check_name(Some("a")).is_ok());
    }

    #[test]
    fn raw_data_has_one_value_a_line() {
        let mut raw = Raw::new();
        raw.push(2, "a", 4096, [("seconds", 0.5), ("bytes", 7.0)]);
        let text = raw.text();
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(lines, ["2,a,4096,seconds,0.5", "2,a,4096,bytes,7"]);
    }
}
