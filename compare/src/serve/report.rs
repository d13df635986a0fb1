//! Builds the report of a run of `compare serve`: the page, and the raw data.

use std::path::Path;

use super::LATENCY_LOAD;
use super::case::ServeCase;
use super::options::ServeOptions;
use super::participants::ServerParticipant;
use super::results::{LoadMeasure, ServeResults};
use super::site::IDLE_CASE;
use super::targets;
use crate::load::latency::LatencyMeasure;
use crate::page::{self, RawData};
use crate::table::{Spread, dash, markdown, strings, two_digits};

/// The limits of the comparison, which the report states for its readers.
const CAVEATS: &str = "\
## What is unfair, and what loopback cannot show

- On loopback there is no network interface: no DMA, no segmentation or checksum offload, no
  interrupts, no packet loss and no network latency. With `sendfile`, the receiver's socket gets
  references to the file's pages, as a network interface with scatter-gather would.
- On loopback, the server's CPU also does the receiver's TCP work, up to the point where the bytes
  are in the receiver's socket queue. For every contender this counts as the server's CPU time, so
  the differences between contenders look smaller than they are. The machine's busy time counts
  everything, including the load generator.
- The load generator has one CPU. If it was the limit, the remarks say so, and the ratios are closer
  to 1 than the servers alone would make them. It never sleeps, so that no server has to wake it.
  While it only looks for something to receive, it does not count as busy, although it does take up
  its CPU.
- In the cases marked *discarded*, the load generator discards bodies of 16 KiB and more inside the
  kernel, without copying them to user space, which no real client does. It can then receive more,
  so these cases show differences between servers that the other cases hide.
- With fewer than 10,000 files, all of them are in the page cache, and are requested equally often.
  With 10,000 or more, the popularity of the files follows Zipf's law (with the exponent 1), and all
  but the most popular tenth are removed from the page cache before each measurement, as far as no
  server has mapped them. How quickly they are read again depends on the disk.
- Cases in which the files would take up more than 2 GiB are left out.
- axum and axum-uncopied are measured only with one file, and uncopied-access-log only with one file
  of at most 1 KiB, to save time.
- nginx and plain keep up to 4096 files open, as uncopied does if it may open at least 16,448
  descriptors.
- TLS and slow clients are not measured.
- The servers do different amounts of work for the same request. `plain` does not parse HTTP and
  sends only two header fields; nginx and axum also send Date, Last-Modified and others. `plain` and
  axum have no timeouts; nginx sets timers. For 60 s, nginx uses its cache of open files without
  checking whether a file has changed.
- axum's ServeDir reads files on tokio's blocking threads, which share the server's CPU here.
- nginx runs without a master process. Its only process uses the same event loop as a worker.
- The kernel counts the CPU time of processes and of the machine in clock ticks, usually of 10 ms.
- Resident memory is the memory of the server's process. For all contenders alike, it excludes
  socket buffers, which are in the kernel.
";

/// The data that the report is built from.
pub(super) struct ServeReport<'a> {
    pub(super) cases: &'a [ServeCase],
    pub(super) options: &'a ServeOptions,
    pub(super) participants: &'a [ServerParticipant],
    pub(super) results: &'a ServeResults,
    pub(super) facts: &'a [(&'static str, String)],
    pub(super) congestion: &'a str,
    pub(super) files: &'a Path,
}

impl ServeReport<'_> {
    /// Builds the page.
    pub(super) fn markdown(&self) -> String {
        let mut page = page::head(
            "File servers compared",
            &self.method(),
            self.facts,
            self.congestion,
        );
        self.write_contenders(&mut page);
        if !self.results.loads.is_empty() {
            self.write_medians(&mut page);
            self.write_ratios(&mut page);
        }
        if !self.results.latencies.is_empty() {
            self.write_latencies(&mut page);
        }
        if !self.results.idles.is_empty() {
            self.write_idle(&mut page);
        }
        page += &targets::section(self.results);
        page += CAVEATS;
        page
    }

    fn method(&self) -> String {
        let options = self.options;
        format!(
            "{} rounds. In each round, in each case, every contender in turn is measured under \
             load for {} s after {} s of warm-up. The load is {} keep-alive connections, with one \
             request in flight on each{}. A case is a size, the number of files of this size that \
             are requested, and what the client does with the bytes: it copies them, as a real \
             client does, or it discards them inside the kernel. All servers are pinned to CPU {}, \
             and the load generator to CPU {}, where it never sleeps. Figures are medians over the rounds, with the minimum and the maximum in \
             parentheses. A ratio is computed within each round, and the table has the median of \
             these ratios. A GB is 10⁹ bytes of response bodies.",
            options.rounds,
            options.seconds.as_secs_f64(),
            options.warm_up.as_secs_f64(),
            options.connections,
            match options.identical {
                true => ", and all requests for a file are the same",
                false => ". No two requests are the same: each has another query and cookie",
            },
            options.server_cpu,
            options.load_cpu,
        )
    }

    fn write_contenders(&self, page: &mut String) {
        *page += "## Contenders\n\n";
        for participant in self.participants {
            let contender = participant.contender;
            let launch = participant.launch.as_ref().map(|launch| {
                let words: Vec<_> = launch
                    .command
                    .iter()
                    .map(|word| word.to_string_lossy())
                    .collect();
                let command = self.with_placeholders(&words.join(" "), participant);
                (launch.version.as_str(), command)
            });
            *page += &page::contender_line(
                contender,
                launch
                    .as_ref()
                    .map(|(version, command)| (*version, command.as_str())),
                participant.exclusion.as_ref(),
            );
        }
        page.push('\n');
        for participant in self.participants {
            let launch = participant.launch.as_ref();
            if let Some(text) = launch.and_then(|launch| launch.configuration.as_ref()) {
                let text = self.with_placeholders(text, participant);
                *page += &page::configuration(participant.contender.name, &text);
            }
        }
    }

    /// Replaces the paths and the port that are specific to this run with placeholders, and the
    /// path of the program with its file name.
    fn with_placeholders(&self, text: &str, participant: &ServerParticipant) -> String {
        let mut text = text
            .replace(&*self.files.to_string_lossy(), "FILES")
            .replace(&*participant.scratch.to_string_lossy(), "SCRATCH")
            .replace(&participant.address.port().to_string(), "PORT");
        let launch = participant.launch.as_ref();
        if let Some(program) = launch.and_then(|launch| launch.command.first())
            && let Some(name) = Path::new(program).file_name()
        {
            text = text.replace(&*program.to_string_lossy(), &name.to_string_lossy());
        }
        text
    }

    fn names(&self) -> Vec<&'static str> {
        let participants = self.participants.iter();
        participants
            .map(|participant| participant.contender.name)
            .collect()
    }

    fn write_medians(&self, page: &mut String) {
        let columns = [
            LoadMeasure::Requests,
            LoadMeasure::ServerCpu,
            LoadMeasure::MachineBusy,
            LoadMeasure::RequestsPerCpuSecond,
            LoadMeasure::ServerShare,
            LoadMeasure::LoadShare,
        ];
        let names = self.names();
        *page += "## Under load\n\n";
        *page += &page::medians(
            &self.results.loads,
            &columns,
            self.cases,
            &names,
            |case, index| self.results.remark(case, names[index]),
        );
    }

    /// Returns the pairs of contenders whose ratios the report has: each of ours with every peer,
    /// every other peer with nginx, and every variant with what it is a variant of. In a pair, the
    /// first contender's figure is divided by the second's.
    fn pairs(&self) -> Vec<(&'static str, &'static str)> {
        let names_of = |is_ours| {
            self.participants
                .iter()
                .map(|participant| participant.contender)
                .filter(move |contender| contender.ours == is_ours)
                .filter(|contender| contender.variant_of.is_none())
                .map(|contender| contender.name)
        };
        let ours_and_peers =
            names_of(true).flat_map(|our| names_of(false).map(move |peer| (our, peer)));
        let peers_and_nginx = names_of(false)
            .filter(|&peer| peer != "nginx" && names_of(false).any(|other| other == "nginx"))
            .map(|peer| (peer, "nginx"));
        let variants = self.participants.iter().filter_map(|participant| {
            let contender = participant.contender;
            Some((contender.name, contender.variant_of?))
        });
        let pairs = ours_and_peers.chain(peers_and_nginx).chain(variants);
        pairs.collect()
    }

    fn write_ratios(&self, page: &mut String) {
        let pairs = self.pairs();
        if pairs.is_empty() {
            return;
        }
        *page += "## Ratios\n\n";
        for (measure, better) in [
            (LoadMeasure::Requests, "more"),
            (LoadMeasure::ServerCpu, "less"),
            (LoadMeasure::MachineBusy, "less"),
        ] {
            *page += &page::ratios(&self.results.loads, measure, better, self.cases, &pairs);
        }
    }

    fn write_latencies(&self, page: &mut String) {
        let cases: Vec<ServeCase> = self
            .cases
            .iter()
            .copied()
            .filter(|case| case.has_latency())
            .collect();
        let names = self.names();
        *page += &format!(
            "## Latency\n\nRequests are sent at random times with a fixed mean rate, which is {} % of \
             what the fastest contender could respond to in the same round and case, so it is the \
             same for all contenders. A latency is the time from the moment when a request was due \
             to the end of its response, even if the request could not be sent at once because all \
             connections were busy.\n\n",
            LATENCY_LOAD * 100.0,
        );
        *page += &page::medians(
            &self.results.latencies,
            &LatencyMeasure::ALL,
            &cases,
            &names,
            |case, index| self.results.latency_remark(case, names[index]),
        );
        let pairs = self.pairs();
        if pairs.is_empty() {
            return;
        }
        for measure in LatencyMeasure::LATENCIES {
            *page += &page::ratios(&self.results.latencies, measure, "less", &cases, &pairs);
        }
    }

    fn write_idle(&self, page: &mut String) {
        *page += &format!(
            "## Idle\n\n{} idle keep-alive connections to a server that has just been started. One \
             file of 1 KiB was requested on each connection before it became idle.\n\n",
            self.options.idle_connections
        );
        let rows: Vec<Vec<String>> = self
            .participants
            .iter()
            .map(|participant| {
                let name = participant.contender.name;
                let value = self.results.idle_kib(name);
                let text = |spread: Spread| spread.text(two_digits);
                vec![name.to_owned(), value.map_or_else(dash, text)]
            })
            .collect();
        *page += &markdown(&strings(&["", "KiB resident per connection"]), &rows);
        page.push('\n');
    }
}

/// Builds the raw data.
pub(super) fn raw_data(results: &ServeResults) -> String {
    let mut raw = RawData::new::<ServeCase>();
    for row in results.loads.iter() {
        let sample = &row.sample;
        let measured = [
            ("seconds", sample.seconds),
            ("requests", sample.requests),
            ("body_bytes", sample.body_bytes),
            ("server_cpu_seconds", sample.server_cpu_seconds),
            ("machine_busy_seconds", sample.machine_busy_seconds),
            ("load_cpu_seconds", sample.load_cpu_seconds),
            ("load_idle_seconds", sample.load_idle_seconds),
        ];
        raw.push_measurement(row, measured, &LoadMeasure::ALL);
    }
    for row in results.latencies.iter() {
        let measured = [
            ("latency_requests_due", row.sample.due as f64),
            ("latency_requests_completed", row.sample.completed as f64),
        ];
        raw.push_measurement(row, measured, &LatencyMeasure::ALL);
    }
    for idle in &results.idles {
        let footprint = &idle.footprint;
        let per_connection = footprint.bytes_per_connection();
        let values = [
            ("idle_connections", footprint.connections as f64),
            ("resident_bytes_before", footprint.before_bytes as f64),
            ("resident_bytes_after", footprint.after_bytes as f64),
            ("resident_bytes_per_connection", per_connection),
        ];
        raw.push(idle.round, idle.contender, IDLE_CASE, values);
    }
    raw.text()
}
