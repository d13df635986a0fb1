//! Which flags got their values from environment variables, so that an error names the variable
//! that has to be changed.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

/// The flags that got their values from the environment.
#[derive(Clone, Debug, Default)]
pub(crate) struct FromEnvironment(Vec<(String, String)>);

impl FromEnvironment {
    /// Looks up where the values of a subcommand's flags came from.
    pub(super) fn of(command: &Command, matches: &ArgMatches) -> Self {
        let mut found = Vec::new();
        for argument in command.get_arguments() {
            let id = argument.get_id().as_str();
            let is_known = matches.try_contains_id(id).is_ok();
            if is_known
                && matches.value_source(id) == Some(ValueSource::EnvVariable)
                && let Some(variable) = argument.get_env()
            {
                found.push((id.to_owned(), variable.to_string_lossy().into_owned()));
            }
        }
        Self(found)
    }

    /// Returns the name under which the user has set a flag such as `--error-page`.
    pub(crate) fn name_of(&self, flag: &str) -> String {
        let id = flag.trim_start_matches('-').replace('-', "_");
        let variable = self.0.iter().find(|(flag, _)| *flag == id);
        variable.map_or_else(|| flag.to_owned(), |(_, variable)| variable.clone())
    }
}

/// If the value that `error` complains about came from an environment variable, returns the name of
/// the argument as it is in clap's message, and that of the variable.
///
/// clap does not tell where a bad value came from. So this parses the same arguments again without
/// the variable: if the value was not on the command line, another outcome follows.
pub(super) fn variable_at_fault(
    root: &Command,
    arguments: &[OsString],
    error: &clap::Error,
) -> Option<(String, String)> {
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    // clap names the arguments only of a command that was built, and changes them only before.
    let mut built = root.clone();
    built.build();
    let name = arguments.get(1)?.to_str()?;
    let argument = built
        .find_subcommand(name)?
        .get_arguments()
        .find(|argument| argument.to_string() == *shown)?;
    let variable = argument.get_env()?.to_string_lossy().into_owned();
    std::env::var_os(&variable)?;
    let id = argument.get_id().clone();
    let without = root.clone().mut_subcommand(name, |command| {
        command.mut_arg(id, |argument| argument.env(None))
    });
    let again = without.try_get_matches_from(arguments);
    let is_same = again.is_err_and(|again| again.to_string() == error.to_string());
    (!is_same).then(|| (shown.clone(), variable))
}
