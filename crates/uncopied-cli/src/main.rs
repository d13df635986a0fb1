//! The `uncopied` command. See the library of this package.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    uncopied_cli::main()
}
