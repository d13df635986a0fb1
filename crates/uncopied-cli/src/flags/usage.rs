//! Usage errors, reported on one line.

use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::output::say;

/// What clap reports instead of a parsed command line.
pub(crate) struct UsageError {
    error: clap::Error,
    /// If an environment variable is at fault: the argument as clap names it, and the variable.
    variable: Option<(String, String)>,
}

impl UsageError {
    pub(super) fn new(error: clap::Error, variable: Option<(String, String)>) -> Self {
        Self { error, variable }
    }

    /// Prints the report, and returns the exit status.
    pub(crate) fn report(&self) -> ExitCode {
        report_usage_error(&self.error, self.variable.as_ref())
    }
}

/// Prints what clap reports, and returns the exit status: 0 for help and version, which go to
/// standard output, and 2 for a usage error, which becomes one line on standard error. Without any
/// arguments, the help goes to standard error, with status 2.
fn report_usage_error(error: &clap::Error, variable: Option<&(String, String)>) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Ignore errors: the usual cause is that the reader has closed the pipe, which is not a
            // failure.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(2)
        }
        _ => {
            let mut message = error.to_string();
            if let Some((argument, variable)) = variable {
                message = message.replacen(&format!("'{argument}'"), variable, 1);
            }
            say(&one_line(&message));
            ExitCode::from(2)
        }
    }
}

/// Joins clap's message into one line, without its usage block.
fn one_line(message: &str) -> String {
    let mut parts: Vec<&str> = message
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    if let Some(first) = parts.first_mut() {
        *first = first.trim_start_matches("error: ");
    }
    // A list follows a colon.
    let joined = parts.join("; ").replace(":; ", ": ");
    format!("{joined}; see --help")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usage_error_is_one_line_with_its_tip() {
        let message = "error: unexpected argument '--lisen' found\n\n  tip: a similar argument \
                       exists: '--listen'\n\nUsage: uncopied serve\n\nFor more information, try '--help'.\n";
        assert_eq!(
            one_line(message),
            "unexpected argument '--lisen' found; tip: a similar argument exists: '--listen'; see --help"
        );
        let missing = "error: the following required arguments were not provided:\n  <LISTEN>\n  \
                       <TARGET>...\n\nUsage: uncopied relay\n";
        assert_eq!(
            one_line(missing),
            "the following required arguments were not provided: <LISTEN>; <TARGET>...; see --help"
        );
    }
}
