//! Builds the report of a run of `compare relay`: the page, its figures as JSON, and the raw data.

use std::path::Path;

use serde_json::json;

use super::case::{MeasuredPart, OPEN_CONNECTIONS, RelayCase};
use super::contender::RelayProgram;
use super::options::RelayOptions;
use super::relays::{LATENCY_LOAD, Relays};
use super::results::{self, RelayMeasure, RelayResults, RelaySample};
use super::targets;
use crate::error::Error;
use crate::load::latency::LatencyMeasure;
use crate::loopback::participants::Participant;
use crate::loopback::report;
use crate::page::{self, RawData};
use crate::rounds::{Case, Measure};
use crate::table::size_text;

/// The limits of the comparison, which the report states for its readers.
const CAVEATS: &str = "\
## What is unfair, and what loopback cannot show

- On loopback there is no network interface: no DMA, no segmentation or checksum offload, no
  interrupts, no packet loss and no network latency. Bytes that are sent with `splice` are the pages
  that the other end has sent, as they would be pages that a network interface has filled.
- On loopback, the sender's CPU also does the receiver's TCP work, up to the point where the bytes
  are in the receiver's socket queue. For what the relay sends, this counts as the relay's CPU time,
  for every contender alike, so the differences between contenders look smaller than they are.
- Clients and server are one thread on one CPU. If it was the limit, the remarks say so, and the
  ratios are closer to 1 than the relays alone would make them. It never sleeps, so that no relay
  has to wake it. While it only looks for something to do, it does not count as busy.
- Bulk traffic is a file of 1 MiB from the page cache, sent over and over with `sendfile`, and it
  is discarded inside the kernel by the end that receives it. So the bytes are in a cache of the CPU
  when a relay copies them, which is cheaper than copying from memory.
- The relays do different amounts of work. HAProxy and nginx have timeouts, statistics and a
  configuration to look at; `tokio` and `loop` have none of that, and neither checks anything.
- The congestion control is that of the namespace for all sockets, including those of the relays.
- The kernel counts the CPU time of processes and of the machine in clock ticks, usually of 10 ms.
";

/// The data that the report is built from.
pub(super) struct RelayReport<'a> {
    pub(super) options: &'a RelayOptions,
    pub(super) cases: &'a [RelayCase],
    pub(super) participants: &'a [Participant<RelayProgram>],
    pub(super) results: &'a RelayResults,
    pub(super) relays: &'a Relays,
    pub(super) facts: &'a [(&'static str, String)],
    pub(super) congestion: &'a str,
}

impl RelayReport<'_> {
    /// Builds the page. `scratch` is the directory for temporary files, which the page must not
    /// name.
    pub(super) fn markdown(&self, scratch: &Path) -> String {
        let mut page = page::head(
            "Relays compared",
            &self.method(),
            self.facts,
            self.congestion,
        );
        page += &self.contenders(scratch);
        page += &self.tables();
        page += &crate::targets::section(&targets::rows(self.results));
        page += CAVEATS;
        page
    }

    fn method(&self) -> String {
        let options = self.options;
        format!(
            "{} rounds. In each round, in each case, every contender in turn is measured for {} s \
             after {} s of warm-up. Every contender has one thread, relays to the same server, and \
             runs on CPU {}; the clients and the server run on CPU {}, as one thread that never \
             sleeps. Everything is in a network namespace of its own. Before the rounds, {} were \
             sent on each connection of each case of bulk traffic and every byte was compared; \
             messages are compared always. Figures are medians over the rounds, with the minimum \
             and the maximum in parentheses. A ratio is computed within each round, and the table \
             has the median of these ratios. The CPU time is that of all threads of the relay's \
             process. A GB is 10⁹ bytes.",
            options.rounds,
            options.seconds.as_secs_f64(),
            options.warm_up.as_secs_f64(),
            options.loopback.sender_cpu,
            options.loopback.receiver_cpu,
            size_text(options.verified),
        )
    }

    fn contenders(&self, scratch: &Path) -> String {
        let mut section = report::contenders(self.participants, |contender| {
            let relay = self.relays.get(contender);
            let relay = relay.ok_or_else(|| Error::Unavailable("it was not prepared".into()))?;
            Ok(relay.launch.command.clone())
        });
        for participant in self.participants {
            let relay = self.relays.get(participant.contender);
            if let Some(text) = relay.and_then(|relay| relay.launch.configuration.as_ref()) {
                section += &page::configuration(participant.contender.name, text);
            }
        }
        section.replace(&*scratch.to_string_lossy(), "SCRATCH")
    }

    /// Builds the tables of each part: an introduction, the medians, and the ratios.
    fn tables(&self) -> String {
        let is_latency = |case: RelayCase| matches!(case, RelayCase::Latency { .. });
        let bulk = |case: RelayCase| case.part() == MeasuredPart::Bulk;
        let round_trips =
            |case: RelayCase| case.part() == MeasuredPart::RoundTrips && !is_latency(case);
        let connections = |case: RelayCase| case.part() == MeasuredPart::Connections;
        let latency = |measure| (RelayMeasure::Latency(measure), "less");
        let mut text = String::new();
        text += &self.part(
            "Bulk traffic",
            "As many bytes as possible, in one direction.",
            bulk,
            &[
                (RelayMeasure::Throughput, "more"),
                (RelayMeasure::CpuPerGb, "less"),
            ],
        );
        text += &self.part(
            "Round trips",
            "On each connection, the client sends the next message when the server has sent back \
             the previous one.",
            round_trips,
            &[
                (RelayMeasure::RoundTrips, "more"),
                (RelayMeasure::CpuPerRoundTrip, "less"),
            ],
        );
        text += &self.part(
            "Latency",
            &format!(
                "Messages are sent at random times with a fixed mean rate, which is {} % of what \
                 the fastest contender could take in the same round and case, so it is the same \
                 for all contenders. A latency is the time from the moment when a message was due \
                 to its return, even if it could not be sent at once because all connections were \
                 busy.",
                LATENCY_LOAD * 100.0
            ),
            is_latency,
            &[
                latency(LatencyMeasure::P50),
                latency(LatencyMeasure::P99),
                latency(LatencyMeasure::P999),
            ],
        );
        text += &self.part(
            "Connections",
            &format!(
                "Each of {OPEN_CONNECTIONS} clients connects, has a round trip of one byte, closes \
                 the connection, and begins again."
            ),
            connections,
            &[
                (RelayMeasure::Connections, "more"),
                (RelayMeasure::CpuPerConnection, "less"),
            ],
        );
        text
    }

    /// Builds the tables of the cases that `is_part` selects, or nothing if there are none.
    fn part(
        &self,
        title: &str,
        introduction: &str,
        is_part: impl Fn(RelayCase) -> bool,
        compared: &[(RelayMeasure, &str)],
    ) -> String {
        let cases: Vec<RelayCase> = self.cases.iter().copied().filter(|&c| is_part(c)).collect();
        let Some(first) = cases.first() else {
            return String::new();
        };
        let medians = report::medians(
            self.participants,
            self.results,
            &first.measures(),
            &cases,
            |case, contender| results::remark(self.results, case, contender.name),
        );
        let ratios = report::ratios(self.participants, self.results, compared, &cases);
        // The headings are one level lower than in reports that have only one part.
        let lower = |text: String| text.replace("## ", "### ");
        format!(
            "## {title}\n\n{introduction}\n\n{}{}",
            lower(medians),
            lower(ratios)
        )
    }

    /// Builds the medians and the targets as JSON.
    pub(super) fn json(&self) -> Result<String, Error> {
        let mut figures = Vec::new();
        for &case in self.cases {
            for participant in self.participants {
                let contender = participant.contender.name;
                for measure in case.measures() {
                    if let Some(spread) = self.results.spread(measure, case, contender) {
                        figures.push(json!({
                            "case": case.key(),
                            "contender": contender,
                            "measure": measure.key(),
                            "median": spread.median,
                            "min": spread.min,
                            "max": spread.max,
                        }));
                    }
                }
            }
        }
        let excluded = self.participants.iter().filter_map(|participant| {
            let why = participant.exclusion.as_ref()?.text();
            Some((participant.contender.name.to_owned(), json!(why)))
        });
        let rows = targets::rows(self.results);
        let targets = rows.iter().map(|row| match &row[..] {
            [target, bound, measured, verdict] => json!({
                "target": target,
                "bound": bound,
                "measured": measured,
                "verdict": verdict,
            }),
            _ => json!(row),
        });
        let document = json!({
            "comparison": "relay",
            "rounds": self.options.rounds,
            "figures": figures,
            "excluded": excluded.collect::<serde_json::Map<_, _>>(),
            "targets": targets.collect::<Vec<_>>(),
        });
        Ok(format!("{document:#}\n"))
    }
}

/// Builds the raw data.
pub(super) fn raw_data(results: &RelayResults) -> String {
    let mut raw = RawData::new::<RelayCase>();
    for row in results.iter() {
        let measured = match &row.sample {
            RelaySample::Load { load, .. } => vec![
                ("seconds", load.usage.seconds),
                ("received_bytes", load.usage.received_bytes as f64),
                ("relay_cpu_seconds", load.usage.process_cpu_seconds),
                ("machine_busy_seconds", load.usage.machine_busy_seconds),
                ("load_cpu_seconds", load.usage.own_cpu_seconds),
                ("load_idle_seconds", load.idle_seconds),
            ],
            RelaySample::Latency(sample) => vec![
                ("latency_due", sample.due as f64),
                ("latency_completed", sample.completed as f64),
            ],
        };
        raw.push_measurement(row, measured, &row.case.measures());
    }
    raw.text()
}
