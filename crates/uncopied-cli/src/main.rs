//! The `uncopied` command.
//!
//! Exit status: 0 for success, 1 for a failure with one line on standard error, 2 for wrong usage.
//! A reader that closes the pipe on standard output is a success.

#![forbid(unsafe_code)]

mod cli;
mod error;
mod pages;
mod serve;
mod values;

use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;

use crate::cli::{Cli, Command};
use crate::error::Error;

fn main() -> ExitCode {
    // Sockets that the service manager passed are taken before this process opens any descriptor
    // and before it starts a thread: the descriptor numbers and the environment are its own.
    let passed = serve::PassedSockets::from_environment();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return wrong_usage(&error),
    };
    let outcome = match cli.command {
        Command::Serve(flags) => serve::run(*flags, passed),
        Command::Completions { shell } => print(&pages::completions(shell)).map_err(Error::Output),
        Command::Man => pages::manual()
            .and_then(|page| print(&page))
            .map_err(Error::Output),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error);
            ExitCode::from(error.status())
        }
    }
}

/// Writes one line to standard error: `uncopied: ` and the message.
///
/// A control character (a file name may hold a line feed) is escaped, so that one message is one
/// line. A closed standard error is ignored: there is nobody left to tell.
fn say(message: &dyn fmt::Display) {
    let mut line = String::from("uncopied: ");
    for character in message.to_string().chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line.push('\n');
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

/// Writes to standard output. A reader that has gone is no error: it has what it wanted.
fn print(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

/// Help and version go to standard output with status 0; a mistake is one line and status 2.
fn wrong_usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // The only error here is a reader that has gone.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(2)
        }
        _ => {
            say(&one_line(&error.to_string()));
            ExitCode::from(2)
        }
    }
}

/// clap's message without its usage block, on one line.
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
    format!("{}; see --help", parts.join("; "))
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
    }
}
