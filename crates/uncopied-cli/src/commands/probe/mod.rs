//! `uncopied probe`: finds out what this machine can do without copying, and why not.
//!
//! Nothing is derived from the version of the kernel. Each row is the result of a trial over
//! loopback, together with the settings of the network interfaces where these decide.

mod cause;
mod finding;
mod interfaces;
mod path;
mod process;
mod rows;
mod settings;
mod text;
mod trial;

use std::fs;

use serde::Serialize;

use self::finding::Status;
use self::interfaces::InterfaceReport;
use self::path::PathReport;
use self::process::Process;
use self::rows::Row;
use self::settings::Setting;
use crate::error::{Error, interface_text};
use crate::flags::{ProbeFlags, ProbeRow};
use crate::output::print;

/// The version of the format of `--json`. It changes if a key gets another meaning or is removed.
const FORMAT: u32 = 1;

/// Everything that was found out. The fields are the keys of `--json`, which docs/probe.md lists.
#[derive(Debug, Serialize)]
struct Probe {
    format: u32,
    version: &'static str,
    kernel: String,
    architecture: &'static str,
    page_bytes: usize,
    process: Process,
    rows: Vec<Row>,
    settings: Vec<Setting>,
    interfaces: Vec<InterfaceReport>,
    /// Why the interfaces could not be described.
    interfaces_error: Option<String>,
    path: PathReport,
}

/// Probes this machine, and prints the result.
pub(crate) fn run(flags: &ProbeFlags) -> Result<(), Error> {
    let probe = Probe::of(flags)?;
    let text = match flags.json {
        true => {
            let text = serde_json::to_string_pretty(&probe);
            text.map_err(|error| Error::Output(error.into()))? + "\n"
        }
        false => text::report(&probe),
    };
    print(text.as_bytes()).map_err(Error::Output)?;
    probe.require(&flags.require)
}

impl Probe {
    fn of(flags: &ProbeFlags) -> Result<Self, Error> {
        let process = Process::read();
        let path = PathReport::of(&flags.path, &process)?;
        let (interfaces, interfaces_error) =
            match interfaces::describe(flags.interface.as_deref(), &process) {
                Ok(interfaces) => (interfaces, None),
                Err(source) => match &flags.interface {
                    Some(name) => {
                        let name = name.clone();
                        return Err(Error::ProbeInterface { name, source });
                    }
                    None => (Vec::new(), Some(interface_text(&source))),
                },
            };
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Ok(Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION"),
            kernel: kernel.trim().to_owned(),
            architecture: std::env::consts::ARCH,
            page_bytes: rustix::param::page_size(),
            rows: rows::try_all(&interfaces, &process),
            settings: settings::read(),
            interfaces,
            interfaces_error,
            path,
            process,
        })
    }

    /// Fails if one of these rows is "no".
    fn require(&self, required: &[ProbeRow]) -> Result<(), Error> {
        let rows = self.rows.iter().filter(|row| required.contains(&row.key));
        let missing: Vec<_> = rows
            .filter(|row| row.finding.status == Status::No)
            .map(|row| format!("{} ({})", row.key.key(), row.finding.why))
            .collect();
        match missing.is_empty() {
            true => Ok(()),
            false => Err(Error::ProbeMissing(missing.join(", "))),
        }
    }
}
