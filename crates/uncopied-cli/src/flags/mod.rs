//! The command line: the definitions of all flags with their help, and the parsing of their values.

mod audit;
mod bench;
mod environment;
mod get;
mod probe;
mod relay;
mod serve;
mod usage;
mod values;

use std::ffi::OsString;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::Shell;

pub(crate) use audit::AuditFlags;
pub(crate) use bench::{BENCH_PORT, BenchDirection, BenchFlags, BenchMechanism, MAX_BENCH_SIZE};
pub(crate) use environment::FromEnvironment;
pub(crate) use get::{Checksum, GetFlags, HashKind, HeaderSource, RequestHeader};
pub(crate) use probe::{ProbeFlags, ProbeRow};
pub(crate) use relay::{
    AcceptProxy, Balance, KeepAlive, ProxyVersion, ProxyVersions, RateLimit, RelayFlags,
    RelayLogFormat, RelayMechanism, RelayProcessSettings, RelaySettings, SendProxy, Switch,
    TargetAddress, TimeOrOff, WeightedTarget,
};
pub(crate) use serve::{LogFormat, ServeFlags};
pub(crate) use usage::UsageError;
pub(crate) use values::{ExtensionType, ListenAddress, SocketMode, TimeSpan};

use audit::AUDIT_HELP;
use bench::BENCH_HELP;
use environment::variable_at_fault;
use get::GET_HELP;
use probe::PROBE_HELP;
use relay::{RELAY_HELP, RELAY_USAGE};
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

impl Cli {
    /// Parses the command line and the environment.
    ///
    /// # Errors
    ///
    /// Help or the version was asked for, or the usage is wrong. The error holds what to print.
    pub(crate) fn parse_arguments() -> Result<Self, UsageError> {
        let arguments: Vec<OsString> = std::env::args_os().collect();
        let mut root = Self::command();
        root.build();
        let parsed = root
            .clone()
            .try_get_matches_from(&arguments)
            .and_then(|matches| Ok((Self::from_arg_matches(&matches)?, matches)));
        match parsed {
            Ok((mut cli, matches)) => {
                if let Some((name, matches)) = matches.subcommand()
                    && let Some(command) = root.find_subcommand(name)
                {
                    let environment = FromEnvironment::of(command, matches);
                    match &mut cli.command {
                        Command::Serve(flags) => flags.environment = environment,
                        Command::Relay(flags) => flags.environment = environment,
                        _ => {}
                    }
                }
                Ok(cli)
            }
            Err(error) => {
                let variable = variable_at_fault(&Self::command(), &arguments, &error);
                Err(UsageError::new(error, variable))
            }
        }
    }
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
    /// Download files over HTTP/1.1
    ///
    /// A file gets its name once it is whole and on the disk. Redirects are followed. Shows the
    /// progress on a terminal, and prints nothing elsewhere, except one line for each failure.
    #[command(after_help = GET_HELP)]
    Get(Box<GetFlags>),
    /// Relay TCP connections to other servers, splicing bulk data
    ///
    /// Accepts connections at LISTEN and connects each of them to one of the targets. Several
    /// listeners, each with its targets, need --config. Runs until SIGTERM or SIGINT.
    #[command(after_help = RELAY_HELP, override_usage = RELAY_USAGE)]
    Relay(Box<RelayFlags>),
    /// Find out what this machine can do without copying, and why not
    ///
    /// Tries each mechanism with real sockets, files and memory, and prints what limits it, with
    /// the command that would change that. Needs no privileges, and says what they would add.
    #[command(after_help = PROBE_HELP)]
    Probe(Box<ProbeFlags>),
    /// Measure how much of a program's CPU time goes into copying bytes
    ///
    /// Samples the program, its threads and its children, and says which share of the samples is in
    /// the kernel's routines that copy payload. Runs COMMAND, or watches a process that runs
    /// already. Works for any program.
    #[command(after_help = AUDIT_HELP)]
    Audit(Box<AuditFlags>),
    /// Measure what each mechanism costs on this machine, and from which size on it pays
    ///
    /// Sends and receives with each mechanism of the library, at several sizes, between two
    /// processes, two network namespaces or two machines. Prints throughput, CPU time of both
    /// sides, copies and system calls, and the thresholds that suit this machine.
    #[command(after_help = BENCH_HELP)]
    Bench(Box<BenchFlags>),
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

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_a_server_has_an_environment_variable() {
        let command = Cli::command();
        for (name, prefix) in [("serve", "UNCOPIED"), ("relay", "UNCOPIED_RELAY")] {
            let server = command.find_subcommand(name).expect("it is defined");
            for argument in server.get_arguments().filter(|a| a.get_id() != "help") {
                let name = argument.get_id().as_str().to_uppercase();
                let variable = argument
                    .get_env()
                    .map(|name| name.to_string_lossy().into_owned());
                assert_eq!(variable, Some(format!("{prefix}_{name}")));
            }
        }
    }
}
