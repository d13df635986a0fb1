//! Shell completions and the manual page, generated from the same definitions as `--help`.

use std::io;

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::flags::Cli;

/// Returns the completion script for a shell.
pub(crate) fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "uncopied", &mut script);
    script
}

/// Returns one manual page, in roff, for the command and all its subcommands.
///
/// # Errors
///
/// Never fails in practice, because the page is written to memory.
pub(crate) fn manual() -> io::Result<Vec<u8>> {
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    for subcommand in command
        .get_subcommands()
        .filter(|sub| sub.get_name() != "help")
    {
        let title = subcommand.get_name().to_uppercase();
        let man = Man::new(subcommand.clone());
        let mut part = Vec::new();
        man.render_synopsis_section(&mut part)?;
        man.render_description_section(&mut part)?;
        if subcommand.get_arguments().next().is_some() {
            man.render_options_section(&mut part)?;
        }
        if subcommand.get_after_help().is_some() {
            man.render_extra_section(&mut part)?;
        }
        // Add the subcommand to the names of its sections ("SERVE OPTIONS"), so that they differ
        // from the sections of the command itself ("OPTIONS").
        for line in String::from_utf8_lossy(&part).lines() {
            // Skip roff definitions that the top of the page already contains.
            if line.starts_with(".ie") || line.starts_with(".el") {
                continue;
            }
            match line.strip_prefix(".SH ") {
                Some(section) => page.extend(format!(".SH \"{title} {section}\"\n").bytes()),
                None => page.extend(format!("{line}\n").bytes()),
            }
        }
    }
    Ok(page)
}
