//! Builds the parts that the reports of all comparisons share, and writes the reports. A report
//! consists of a page in Markdown (README.md) and the raw data (raw.csv).

use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use crate::command_line::Uncopied;
use crate::error::{Context, Error};
use crate::machine;
use crate::participant::{Contender, Exclusion};
use crate::process;
use crate::rounds::{Case, Measure, Measurement, Rounds};
use crate::table::{dash, markdown, strings, two_digits};

/// Returns the directory to write the report into: `out` if it is given, otherwise
/// `benchmarks/DATE-NAME` in the workspace, where `name` returns NAME. Returns `None` if `out` is
/// not given and the run is incomplete: the report is then only printed.
pub(crate) fn output_directory(
    out: Option<&Path>,
    is_incomplete: bool,
    name: impl FnOnce() -> String,
) -> Result<Option<PathBuf>, Error> {
    if let Some(out) = out {
        return Ok(Some(out.to_owned()));
    }
    if is_incomplete {
        return Ok(None);
    }
    let directory = format!("{}-{}", machine::today()?, name());
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let benchmarks = workspace.unwrap_or(Path::new(".")).join("benchmarks");
    Ok(Some(benchmarks.join(directory)))
}

/// Returns an error if the name cannot be part of a directory name.
pub(crate) fn check_name(name: Option<&str>) -> Result<(), Error> {
    match name {
        Some(name) if name.is_empty() || name.contains('/') => Err(Error::Usage(
            "--name must not be empty or contain a slash: it becomes part of a directory name"
                .into(),
        )),
        Some(_) | None => Ok(()),
    }
}

/// Prints the page. If there is a `directory`, also writes the page and the raw data into it.
pub(crate) fn publish(directory: Option<&Path>, page: &str, raw: &str) -> Result<(), Error> {
    print(page)?;
    write(directory, page, raw)
}

/// If there is a `directory`, writes the page and the raw data into it.
pub(crate) fn write(directory: Option<&Path>, page: &str, raw: &str) -> Result<(), Error> {
    let Some(directory) = directory else {
        return Ok(());
    };
    fs::create_dir_all(directory).context(|| format!("cannot create {}", directory.display()))?;
    for (name, text) in [("README.md", page), ("raw.csv", raw)] {
        let path = directory.join(name);
        fs::write(&path, text).context(|| format!("cannot write {}", path.display()))?;
    }
    eprintln!("compare: wrote {}", directory.display());
    Ok(())
}

/// Prints `text` to standard output. Succeeds even if standard output is a pipe whose reader closes
/// it early, as `head` does.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context(|| "cannot print".into())
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Warns on standard error if this is a debug build.
pub(crate) fn warn_of_debug_build() {
    if cfg!(debug_assertions) {
        eprintln!("compare: this is a debug build: its figures mean nothing, use --release");
    }
}

/// Builds the beginning of the page, which describes how the run was made: the command, the method
/// in words, the machine, and the congestion control.
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

/// Builds one contender's entry in the list of contenders: its name, what it is, its version and
/// command if it can be run, and the reason if it was excluded.
pub(crate) fn contender_line(
    contender: &impl Contender,
    version_and_command: Option<(&str, &str)>,
    exclusion: Option<&Exclusion>,
) -> String {
    let mut line = format!("- **{}**: {}.", contender.name(), contender.about());
    if let Some((version, command)) = version_and_command {
        line += &format!(" {version}. `{command}`");
    }
    if let Some(exclusion) = exclusion {
        line += &format!(" {}", exclusion.text());
    }
    line.push('\n');
    line
}

/// Builds the section with the configuration of one contender.
pub(crate) fn configuration(contender: &str, text: &str) -> String {
    let mut section = format!("{contender}'s configuration:\n\n");
    for line in text.lines() {
        section += &format!("    {line}\n");
    }
    section.push('\n');
    section
}

/// Formats a command line as text. Replaces the paths of this program and of `uncopied` with their
/// names, so that the report does not depend on where the programs were built.
pub(crate) fn command_text(command: &[OsString]) -> String {
    let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
    let mut text = words.join(" ");
    for (path, name) in [
        (process::own_program(), "compare"),
        (Uncopied::path(), "uncopied"),
    ] {
        if let Ok(path) = path {
            text = text.replace(&*path.to_string_lossy(), name);
        }
    }
    text
}

/// Builds one table of medians for each case. A table has a row for each contender, a column for
/// each measure, and a column of remarks. `remark` returns the remark for a case and for the
/// contender at an index of `contenders`.
pub(crate) fn medians<M: Measure, C: Case>(
    results: &Rounds<M::Sample, C>,
    columns: &[M],
    cases: &[C],
    contenders: &[&str],
    remark: impl Fn(C, usize) -> String,
) -> String {
    let mut header = vec![String::new()];
    header.extend(columns.iter().map(|measure| measure.name().to_owned()));
    header.push("remarks".to_owned());
    let table = |&case: &C| {
        let rows: Vec<Vec<String>> = contenders
            .iter()
            .enumerate()
            .map(|(index, &name)| {
                let mut row = vec![name.to_owned()];
                row.extend(columns.iter().map(|&measure| {
                    let spread = results.spread(measure, case, name);
                    spread.map_or_else(dash, |spread| measure.cell(spread))
                }));
                row.push(remark(case, index));
                row
            })
            .collect();
        format!("### {}\n\n{}\n", case.text(), markdown(&header, &rows))
    };
    cases.iter().map(table).collect()
}

/// Builds a table of ratios for one measure, with a row for each case and a column for each pair of
/// contenders. In a pair, the figure of the first contender is divided by that of the second.
/// `better` is `more` or `less`: the direction in which the measure gets better.
pub(crate) fn ratios<M: Measure, C: Case>(
    results: &Rounds<M::Sample, C>,
    measure: M,
    better: &str,
    cases: &[C],
    pairs: &[(&str, &str)],
) -> String {
    let mut header = vec![format!("{} ({better} is better)", measure.name())];
    header.extend(
        pairs
            .iter()
            .map(|(above, below)| format!("{above} ÷ {below}")),
    );
    let rows: Vec<Vec<String>> = cases
        .iter()
        .map(|&case| {
            let mut row = vec![case.text()];
            row.extend(pairs.iter().map(|(above, below)| {
                let ratio = results.ratio(measure, case, above, below);
                ratio.map_or_else(dash, |ratio| ratio.text(two_digits))
            }));
            row
        })
        .collect();
    markdown(&header, &rows) + "\n"
}

/// The content of raw.csv, with one value per line.
pub(crate) struct RawData(String);

impl RawData {
    /// Returns raw data that has only the header line, for cases of type `C`.
    pub(crate) fn new<C: Case>() -> Self {
        Self(format!("round,contender,{},measure,value\n", C::COLUMN))
    }

    /// Adds values that were measured for one contender in one case in one round.
    pub(crate) fn push(
        &mut self,
        round: usize,
        contender: &str,
        case: impl Case,
        values: impl IntoIterator<Item = (&'static str, f64)>,
    ) {
        let case = case.key();
        for (key, value) in values {
            // Ignore the result, because writing to a `String` never fails.
            let _ = writeln!(self.0, "{round},{contender},{case},{key},{value}");
        }
    }

    /// Adds one measurement: first the values in `measured`, then the figures in `derived`, which
    /// are computed from the measurement's sample.
    pub(crate) fn push_measurement<M: Measure, C: Case>(
        &mut self,
        row: &Measurement<M::Sample, C>,
        measured: impl IntoIterator<Item = (&'static str, f64)>,
        derived: &[M],
    ) {
        let derived = derived
            .iter()
            .map(|measure| (measure.key(), measure.value(&row.sample)));
        let values = measured.into_iter().chain(derived);
        self.push(row.round, row.contender, row.case, values);
    }

    /// Returns the content of the file raw.csv.
    pub(crate) fn text(self) -> String {
        self.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_incomplete_run_is_only_written_to_an_explicit_directory() {
        let name = || "here".to_owned();
        assert_eq!(output_directory(None, true, name).unwrap(), None);
        let out = Path::new("/somewhere");
        assert_eq!(
            output_directory(Some(out), true, name).unwrap().unwrap(),
            out
        );
        let complete = output_directory(None, false, name).unwrap().unwrap();
        assert!(
            complete.to_string_lossy().ends_with("-here"),
            "{complete:?}"
        );
        assert!(check_name(Some("a/b")).is_err());
        assert!(check_name(Some("a")).is_ok());
    }

    #[test]
    fn raw_data_has_one_value_per_line() {
        let mut raw = RawData::new::<u64>();
        raw.push(2, "a", 4096_u64, [("seconds", 0.5), ("bytes", 7.0)]);
        let text = raw.text();
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(lines, ["2,a,4096,seconds,0.5", "2,a,4096,bytes,7"]);
    }
}
