//! The command line: the definitions of all flags with their help, and the parsing of their values.

mod serve;
mod usage;
mod values;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

pub(crate) use serve::{LogFormat, ServeFlags};
pub(crate) use usage::report_usage_error;
pub(crate) use values::{ListenAddress, TimeSpan};

use serve::SERVE_HELP;

/// Move bytes between files and sockets without copying them, and report how they were sent
#[derive(Debug, Parser)]
#[command(name = "uncopied", version, arg_required_else_help = true)]
#[command(
    after_help = "Exit status: 0 on success, 1 on failure (with one line on standard error), 2 on wrong usage."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a directory or a file over HTTP/1.1, using sendfile
    ///
    /// Prints the URL on standard error, then serves until SIGTERM or SIGINT. Only regular files
    /// are sent. Files outside PATH are never served, unless a symbolic link leads to them and
    /// --follow-links is given.
    #[command(after_help = SERVE_HELP)]
    Serve(Box<ServeFlags>),
    /// Print the completion script for a shell
    Completions {
        /// The shell to generate the script for
        shell: Shell,
    },
    /// Print the manual page of the whole command, in roff
    Man,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_serve_has_an_environment_variable() {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").expect("serve is defined");
        for argument in serve.get_arguments().filter(|a| a.get_id() != "help") {
            let name = argument.get_id().as_str().to_uppercase();
            let variable = argument
                .get_env()
                .map(|name| name.to_string_lossy().into_owned());
            assert_eq!(variable, Some(format!("UNCOPIED_{name}")));
        }
    }
}
