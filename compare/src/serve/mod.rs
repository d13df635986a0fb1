//! `compare serve`: compares file servers. Starts all servers with the same files, puts one server
//! after the other under the same load, and reports the measurements.

mod case;
pub(crate) mod contender;
pub(crate) mod contenders;
mod idle;
mod load;
pub(crate) mod options;
mod participants;
mod popularity;
mod report;
mod response;
mod results;
mod site;
mod targets;

use crate::error::Error;
use crate::interrupt;
use crate::load::LoadTimes;
use crate::load::latency::LatencyMeasure;
use crate::machine::{self, CongestionSetting};
use crate::page;
use crate::process;
use crate::rounds::{Case, Measure, Measurement};
use crate::table::grouped;

use case::ServeCase;
use load::{LoadSettings, closed_loop, open_loop};
use options::{MeasuredPart, ServeOptions};
use participants::ServerParticipant;
use results::{IdleMeasurement, LoadMeasure, ServeResults};
use site::{IDLE_CASE, Site};

/// The maximum number of rounds with idle connections. A few rounds are enough, because the memory
/// per connection hardly varies between rounds.
const MAX_IDLE_ROUNDS: usize = 3;

/// The rate at which latencies are measured, as a fraction of the requests per second of the
/// fastest contender. At the same rate for all, a contender that could respond to fewer requests
/// has more of its CPU in use.
const LATENCY_LOAD: f64 = 0.7;

/// The number of descriptors that this process or a server may need in addition to one per idle
/// connection, for example for files, pipes and epoll.
const OTHER_DESCRIPTORS: u64 = 200;

/// Runs the comparison, prints the report, and writes it.
///
/// # Errors
///
/// [`Error::Failed`] if a contender failed while being measured. The report is written even then,
/// with the results of the other contenders. A contender that cannot be started is not an error:
/// the report says that it was left out.
pub(crate) fn run(options: &ServeOptions) -> Result<(), Error> {
    options.check()?;
    interrupt::watch()?;
    let files = options.files.iter().copied().max().unwrap_or_default();
    process::allow_descriptors(
        u64::from(options.idle_connections)
            + u64::from(files.min(contender::OPEN_FILES))
            + OTHER_DESCRIPTORS,
    )?;
    page::warn_of_debug_build();
    let out = page::output_directory(options.out.as_deref(), options.is_incomplete(), || {
        let name = options.name.clone().unwrap_or_else(machine::host_name);
        let comparison = if options.identical {
            "serve-identical"
        } else {
            "serve"
        };
        format!("{name}-{comparison}")
    })?;
    let mut cases = case::all(&options.sizes, &options.files, &options.receivers);
    if options.only == Some(MeasuredPart::Latency) {
        cases.retain(|case| case.has_latency());
    }
    let parent = machine::scratch_parent(options.dir.as_deref())?;
    let site = Site::create(&parent, cases.iter().copied().chain([IDLE_CASE]))?;
    let facts = machine::facts(&site.files());
    let mut participants = participants::prepare(options, &site)?;
    let congestion = CongestionSetting::set(&options.congestion)?;
    process::pin_to(options.load_cpu)?;

    let mut results = ServeResults::default();
    if options.only != Some(MeasuredPart::Idle) {
        for participant in &mut participants {
            participant.start(options.server_cpu)?;
        }
        let congestion = || congestion.check();
        let rounds = LoadRounds {
            options,
            site: &site,
            cases: &cases,
        };
        rounds.measure(&mut participants, congestion, &mut results)?;
        participants.iter_mut().for_each(ServerParticipant::stop);
    }
    if matches!(options.only, None | Some(MeasuredPart::Idle)) {
        measure_idle(&mut participants, options, &site, &mut results)?;
    }
    if results.loads.is_empty() && results.idles.is_empty() {
        return Err(Error::Unavailable(
            "no contender could be measured; see the reasons above".into(),
        ));
    }

    let report = report::ServeReport {
        cases: &cases,
        options,
        participants: &participants,
        results: &results,
        facts: &facts,
        congestion: congestion.name(),
        files: &site.files(),
    };
    page::publish(
        out.as_deref(),
        &report.markdown(),
        &report::raw_data(&results),
    )?;
    participants::check_failures(&participants)
}

/// What the measurements under load need.
struct LoadRounds<'a> {
    options: &'a ServeOptions,
    site: &'a Site,
    cases: &'a [ServeCase],
}

impl LoadRounds<'_> {
    /// Measures the contenders under load in rounds. In each round, takes one case after the other,
    /// and measures every contender once in that case before going on to the next case. Where
    /// latencies are measured, does that after all contenders have shown how many requests per
    /// second they can respond to. Calls `check` after each case.
    fn measure(
        &self,
        participants: &mut [ServerParticipant],
        check: impl Fn() -> Result<(), Error>,
        results: &mut ServeResults,
    ) -> Result<(), Error> {
        for round in 1..=self.options.rounds as usize {
            for &case in self.cases {
                let taking_part = |one: &&mut ServerParticipant| one.takes_part(case);
                for participant in participants.iter_mut().filter(taking_part) {
                    self.measure_closed_loop(round, case, participant, results)?;
                }
                if let Some(rate) = self.latency_rate(round, case, results) {
                    for participant in participants.iter_mut().filter(taking_part) {
                        self.measure_open_loop(round, case, rate, participant, results)?;
                    }
                }
                check()?;
            }
        }
        Ok(())
    }

    /// Returns the rate in requests per second at which latencies are measured: a fixed fraction of
    /// what the fastest contender could respond to in this round.
    fn latency_rate(&self, round: usize, case: ServeCase, results: &ServeResults) -> Option<f64> {
        if self.options.only == Some(MeasuredPart::Load) || !case.has_latency() {
            return None;
        }
        let rows = results.loads.iter();
        rows.filter(|row| row.round == round && row.case == case)
            .map(|row| LoadMeasure::Requests.value(&row.sample) * LATENCY_LOAD)
            .max_by(f64::total_cmp)
            .filter(|&rate| rate > 0.0)
    }

    fn settings(&self, case: ServeCase) -> LoadSettings {
        LoadSettings {
            connections: usize::from(self.options.connections),
            times: LoadTimes {
                warm_up: self.options.warm_up,
                window: self.options.seconds,
            },
            is_distinct: !self.options.identical,
            receiver: case.receiver,
        }
    }

    fn measure_closed_loop(
        &self,
        round: usize,
        case: ServeCase,
        participant: &mut ServerParticipant,
        results: &mut ServeResults,
    ) -> Result<(), Error> {
        self.site.cool(case)?;
        let measured = participant.with_server(self.site, case, |_, served| {
            closed_loop::run(served, self.settings(case))
        })?;
        let Some(sample) = measured else {
            return Ok(());
        };
        let contender = participant.contender.name;
        eprintln!(
            "round {round}/{}  {:<28}  {contender:<13} {:>9} requests/s  {:.4} CPU s/GB  (server \
             {:.0} %, load {:.0} % of a CPU)",
            self.options.rounds,
            case.text(),
            grouped(LoadMeasure::Requests.value(&sample)),
            LoadMeasure::ServerCpu.value(&sample),
            LoadMeasure::ServerShare.value(&sample) * 100.0,
            LoadMeasure::LoadShare.value(&sample) * 100.0,
        );
        results.loads.push(Measurement {
            round,
            case,
            contender,
            sample,
        });
        Ok(())
    }

    fn measure_open_loop(
        &self,
        round: usize,
        case: ServeCase,
        rate: f64,
        participant: &mut ServerParticipant,
        results: &mut ServeResults,
    ) -> Result<(), Error> {
        self.site.cool(case)?;
        let measured = participant.with_server(self.site, case, |_, served| {
            open_loop::run(served, self.settings(case), rate)
        })?;
        let Some(sample) = measured else {
            return Ok(());
        };
        let contender = participant.contender.name;
        eprintln!(
            "round {round}/{}  {:<28}  {contender:<13} {:>9} requests/s  p50 {} µs, p90 {} µs, p99 \
             {} µs",
            self.options.rounds,
            case.text(),
            grouped(rate),
            grouped(LatencyMeasure::P50.value(&sample)),
            grouped(LatencyMeasure::P90.value(&sample)),
            grouped(LatencyMeasure::P99.value(&sample)),
        );
        results.latencies.push(Measurement {
            round,
            case,
            contender,
            sample,
        });
        Ok(())
    }
}

/// Measures the memory for idle connections. Starts a new server for every measurement, so that
/// memory that was allocated under load does not count.
fn measure_idle(
    participants: &mut [ServerParticipant],
    options: &ServeOptions,
    site: &Site,
    results: &mut ServeResults,
) -> Result<(), Error> {
    let count = usize::from(options.idle_connections);
    let rounds = (options.rounds as usize).min(MAX_IDLE_ROUNDS);
    for round in 1..=rounds {
        for participant in participants.iter_mut() {
            participant.start(options.server_cpu)?;
            let measured = participant.with_server(site, IDLE_CASE, |server, served| {
                idle::measure(server, served, count)
            });
            participant.stop();
            let Some(footprint) = measured? else {
                continue;
            };
            let contender = participant.contender.name;
            eprintln!(
                "round {round}/{rounds}  idle     {contender:<13} {:.1} KiB per connection",
                footprint.bytes_per_connection() / 1024.0
            );
            results.idles.push(IdleMeasurement {
                round,
                contender,
                footprint,
            });
        }
    }
    Ok(())
}
