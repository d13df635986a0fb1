//! The command line: the words as they come, with their help.

mod serve;
mod usage;
mod values;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

pub(crate) use serve::{LogFormat, ServeFlags};
pub(crate) use usage::report_usage_error;
pub(crate) use values::ListenAddress;

use serve::SERVE_HELP;

/// Moves bytes between files and sockets without the CPU copying them, and says which way each went
#[derive(Debug, Parser)]
#[command(name = "uncopied", version, arg_required_else_help = true)]
#[command(
    after_help = "Exit status: 0 success, 1 failure (one line on standard error says why), 2 wrong usage."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a directory or a file over HTTP/1.1, its bytes going out by sendfile
    ///
    /// Prints the URL on standard error, then serves until SIGTERM or SIGINT. Paths never leave PATH unless
    /// --follow-links says so, and only regular files are sent.
    #[command(after_help = SERVE_HELP)]
    Serve(Box<ServeFlags>),
    /// Print the completion script of a shell.
    Completions {
        /// The shell to complete in.
        shell: Shell,
    },
    /// Print the manual page (roff) of the whole command.
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
    fn every_flag_of_serve_has_its_environment_variable() {
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
