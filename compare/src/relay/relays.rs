//! The running relays of a run, and their measurements.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::case::{Direction, OPEN_CONNECTIONS, RelayCase};
use super::contender::{RelayProgram, RelaySetup};
use super::load::bulk::{Bulk, SourceFile};
use super::load::connections::Connections;
use super::load::messages::Messages;
use super::load::{RelayTarget, verify};
use super::results::{RelayMeasure, RelaySample, Work};
use crate::error::{Context, Error};
use crate::interrupt;
use crate::load::closed_loop::ClosedLoop;
use crate::load::{self, LoadTimes, open_loop};
use crate::process::{Launch, Server};
use crate::rounds::Measure;

/// The port of the server that the relays connect to. The relays listen on the following ports. In
/// a network namespace of its own, a run finds all ports free.
const TARGET_PORT: u16 = 9000;

/// The rate at which latencies are measured, as a fraction of the round trips per second of the
/// fastest contender.
pub(super) const LATENCY_LOAD: f64 = 0.7;

/// The address of the server that the relays connect to.
pub(super) const TARGET: SocketAddr = address(TARGET_PORT);

const fn address(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// A contender that can be started.
pub(super) struct Relay {
    /// How it is started.
    pub(super) launch: Launch,
    /// The address that it listens on.
    pub(super) address: SocketAddr,
    /// A directory for its own files.
    pub(super) scratch: PathBuf,
    server: Option<Server>,
}

/// The contenders that can be started, by their names.
#[derive(Default)]
pub(super) struct Relays(BTreeMap<&'static str, Relay>);

impl Relays {
    /// Finds or builds a contender, and decides on which port it listens. Returns its version.
    pub(super) fn prepare(
        &mut self,
        contender: &RelayProgram,
        scratch: &Path,
    ) -> Result<String, Error> {
        let scratch = scratch.join(contender.name);
        fs::create_dir(&scratch).context(|| format!("cannot create {}", scratch.display()))?;
        let address = address(TARGET_PORT + 1 + self.0.len() as u16);
        let launch = (contender.prepare)(&RelaySetup {
            scratch: &scratch,
            listen: address,
            target: TARGET,
        })?;
        let version = launch.version.clone();
        let relay = Relay {
            launch,
            address,
            scratch,
            server: None,
        };
        self.0.insert(contender.name, relay);
        Ok(version)
    }

    /// Starts a contender that was prepared, on `cpu`.
    pub(super) fn start(&mut self, contender: &RelayProgram, cpu: usize) -> Result<(), Error> {
        let Some(relay) = self.0.get_mut(contender.name) else {
            return Ok(());
        };
        relay.server = Some(Server::start(
            &relay.launch.command,
            relay.address,
            cpu,
            relay.launch.output.as_deref(),
            &relay.scratch.join("stderr"),
        )?);
        Ok(())
    }

    /// Returns a contender, if it was prepared.
    pub(super) fn get(&self, contender: &RelayProgram) -> Option<&Relay> {
        self.0.get(contender.name)
    }

    /// Calls `work` with the process of a contender. If `work` fails because the process has
    /// exited, returns the error that says so.
    fn with_server<T>(
        &mut self,
        contender: &RelayProgram,
        work: impl FnOnce(&mut Server) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let server = self
            .0
            .get_mut(contender.name)
            .and_then(|relay| relay.server.as_mut())
            .ok_or_else(|| Error::Unavailable("it is not running".into()))?;
        work(server).map_err(|error| match error {
            Error::Interrupted => error,
            _ => server.check_alive().err().unwrap_or(error),
        })
    }
}

/// Measures the contenders, one after the other.
pub(super) struct Measurements<'a> {
    /// The contenders.
    pub(super) relays: Relays,
    /// The server that all relays connect to.
    pub(super) target: RelayTarget,
    /// The file that is sent as bulk traffic.
    pub(super) file: SourceFile,
    /// The duration of each load.
    pub(super) times: LoadTimes,
    /// The congestion control of the connections.
    pub(super) congestion: &'a str,
    /// How many round trips per second the fastest contender could take.
    pub(super) pace: Pace,
}

/// The highest rate of round trips per second of any contender in one case and round.
#[derive(Default)]
pub(super) struct Pace {
    case: Option<RelayCase>,
    fastest: f64,
}

impl Pace {
    /// Takes note of the case in which a contender is about to be measured. Rates from before the
    /// latest case of round trips are forgotten.
    fn enter(&mut self, case: RelayCase) {
        if self.case != Some(case) && matches!(case, RelayCase::RoundTrips { .. }) {
            self.fastest = 0.0;
        }
        self.case = Some(case);
    }

    fn record(&mut self, rate: f64) {
        self.fastest = self.fastest.max(rate);
    }
}

impl Measurements<'_> {
    /// Compares every byte of a transfer of `size` bytes on each connection.
    pub(super) fn verify(
        &mut self,
        contender: &RelayProgram,
        connections: u16,
        direction: Direction,
        size: u64,
    ) -> Result<(), Error> {
        let Self { relays, target, .. } = self;
        interrupt::check()?;
        relays.with_server(contender, |server| {
            let pairs = target.open_pairs(server, connections)?;
            verify::verify(target.receiver(), pairs, direction, size)
        })
    }

    /// Measures a contender in a case.
    pub(super) fn measure(
        &mut self,
        contender: &RelayProgram,
        case: RelayCase,
    ) -> Result<RelaySample, Error> {
        let Self {
            relays,
            target,
            file,
            times,
            congestion,
            pace,
        } = self;
        let times = *times;
        pace.enter(case);
        relays.with_server(contender, |server| match case {
            RelayCase::Bulk {
                connections,
                direction,
            } => {
                let pairs = target.open_pairs(server, connections)?;
                let mut bulk = Bulk::new(pairs, direction, file)?;
                let load = load::measure(&mut bulk, server.id(), times)?;
                Ok(RelaySample::Load {
                    load,
                    work: Work::Bytes,
                })
            }
            RelayCase::RoundTrips { bytes, connections } => {
                let mut messages = Messages::new(target.open_pairs(server, connections)?, bytes)?;
                let mut closed_loop = ClosedLoop::start(&mut messages)?;
                let load = load::measure(&mut closed_loop, server.id(), times)?;
                let work = Work::RoundTrips(bytes);
                let sample = RelaySample::Load { load, work };
                pace.record(RelayMeasure::RoundTrips.value(&sample));
                Ok(sample)
            }
            RelayCase::Latency { bytes, connections } => {
                let mut messages = Messages::new(target.open_pairs(server, connections)?, bytes)?;
                let rate = pace.fastest * LATENCY_LOAD;
                open_loop::run(&mut messages, times, rate).map(RelaySample::Latency)
            }
            RelayCase::Connections => {
                let (address, id) = (server.address(), server.id());
                let mut connections =
                    Connections::open(address, target, congestion, OPEN_CONNECTIONS)?;
                let load = load::measure(&mut connections, id, times)?;
                Ok(RelaySample::Load {
                    load,
                    work: Work::Connections,
                })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_that_of_the_fastest_contender_of_the_round() {
        let round_trips = RelayCase::RoundTrips {
            bytes: 1,
            connections: 1,
        };
        let latency = RelayCase::Latency {
            bytes: 1,
            connections: 1,
        };
        let mut pace = Pace::default();
        for rate in [5.0, 9.0, 7.0] {
            pace.enter(round_trips);
            pace.record(rate);
        }
        pace.enter(latency);
        assert_eq!(pace.fastest, 9.0);
        pace.enter(round_trips);
        pace.record(3.0);
        pace.enter(latency);
        assert_eq!(pace.fastest, 3.0);
    }
}
