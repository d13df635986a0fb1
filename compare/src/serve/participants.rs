//! The contenders of a run, with their server processes.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::case::ServeCase;
use super::contender::{FileServer, ServerSetup};
use super::contenders;
use super::load::Served;
use super::options::ServeOptions;
use super::site::Site;
use crate::error::Error;
use crate::interrupt;
use crate::participant::{self, Exclusion};
use crate::process::{self, Launch, Server};
use crate::rounds::Case;

/// A contender in this run.
pub(super) struct ServerParticipant {
    /// The contender.
    pub(super) contender: &'static FileServer,
    /// The address that the contender's server listens on.
    pub(super) address: SocketAddr,
    /// A directory for the server's own files, such as its configuration.
    pub(super) scratch: PathBuf,
    /// The command and the configuration that start the server, or `None` if `prepare` failed, for
    /// example because the server is not installed.
    pub(super) launch: Option<Launch>,
    /// Why the contender was never measured, or stopped being measured. `None` while it takes part.
    pub(super) exclusion: Option<Exclusion>,
    server: Option<Server>,
}

/// Prepares the chosen contenders, which includes finding or building their servers. Must be called
/// before this process is pinned to one CPU, so that the build can use all CPUs.
pub(super) fn prepare(
    options: &ServeOptions,
    site: &Site,
) -> Result<Vec<ServerParticipant>, Error> {
    let mut prepared = Vec::new();
    for contender in participant::selected(contenders::ALL, &options.contenders) {
        let scratch = site.scratch(contender.name)?;
        let address = process::free_address()?;
        let mut participant = ServerParticipant {
            contender,
            address,
            scratch,
            launch: None,
            server: None,
            exclusion: None,
        };
        let launch = (contender.prepare)(&ServerSetup {
            files: &site.files(),
            scratch: &participant.scratch,
            address,
        });
        interrupt::check()?;
        match launch {
            Ok(launch) => participant.launch = Some(launch),
            Err(error) => participant.exclude(&error),
        }
        prepared.push(participant);
    }
    Ok(prepared)
}

/// Returns an error if a contender failed while being measured.
pub(super) fn check_failures(participants: &[ServerParticipant]) -> Result<(), Error> {
    participant::check_failures(participants.iter().map(|participant| {
        let name = participant.contender.name;
        (name, participant.exclusion.as_ref())
    }))
}

impl ServerParticipant {
    /// Starts the server, unless the contender is excluded. If the server does not start, excludes
    /// the contender.
    pub(super) fn start(&mut self, cpu: usize) -> Result<(), Error> {
        if self.exclusion.is_some() {
            return Ok(());
        }
        let Some(launch) = &self.launch else {
            return Ok(());
        };
        let errors = self.scratch.join("stderr");
        match Server::start(
            &launch.command,
            self.address,
            cpu,
            launch.output.as_deref(),
            &errors,
        ) {
            Ok(server) => self.server = Some(server),
            Err(error @ (Error::Interrupted | Error::Usage(_))) => return Err(error),
            Err(error) => self.exclude(&error),
        }
        Ok(())
    }

    /// Stops the server, if it is running.
    pub(super) fn stop(&mut self) {
        self.server = None;
    }

    /// Whether the contender can be measured in a case.
    pub(super) fn takes_part(&self, case: ServeCase) -> bool {
        self.server.is_some() && (self.contender.takes_part)(case)
    }

    fn exclude(&mut self, error: &Error) {
        self.exclusion = Some(Exclusion::unavailable(self.contender.name, error));
    }

    /// Calls `work` with the running server and the files of a case, and returns its result.
    /// Does nothing and returns `None` if the server is not running, because the contender is
    /// excluded. If `work` fails, excludes the
    /// contender and returns `None`, so that the run continues with the others. Only
    /// [`Error::Interrupted`] is returned as an error.
    pub(super) fn with_server<T>(
        &mut self,
        site: &Site,
        case: ServeCase,
        work: impl FnOnce(&mut Server, &Served<'_>) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let (Some(server), Some(set)) = (&mut self.server, site.set(case)) else {
            return Ok(None);
        };
        let served = Served {
            address: server.address(),
            pid: server.id(),
            set,
        };
        match work(server, &served) {
            Ok(value) => Ok(Some(value)),
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(error) => {
                // If the server has exited, report its last message. It says more about the cause
                // than `error`, which may only say that the connection broke.
                let error = server.check_alive().err().unwrap_or(error);
                let name = self.contender.name;
                self.exclusion = Some(Exclusion::failed(name, &case.phrase(), &error));
                self.server = None;
                Ok(None)
            }
        }
    }
}
