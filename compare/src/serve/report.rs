//! The report of a run: a page to read, and raw data.

use std::path::Path;

use super::options::ServeOptions;
use super::participants::ServerParticipant;
use super::results::{LoadMeasure, ServeResults};
use super::site::IDLE_SIZE_BYTES;
use super::targets;
use crate::page::{self, RawData};
use crate::table::{Spread, dash, markdown, strings, two_digits};

/// What no reader should have to find out alone.
const CAVEATS: &str = "\
## What is unfair, and what loopback cannot show

- On loopback there is no network interface: no DMA, no segmentation or checksum offload, no
  interrupts, no loss, no distance. The pages of sendfile go to the receiver by reference, as they
  would to a scatter-gather interface.
- The sender's CPU also does the receiver's TCP work up to its socket queue. That counts as the
  server's, for all servers alike, and dilutes their differences. The machine's busy time counts
  everything, including the load generator.
- The load generator has one CPU. Where it is the limit the row says so, and the ratio is closer to
  1 than it would be. It discards bodies of 16 KiB and more inside the kernel, so no receiver copies
  them; a real client would.
- All files are in the page cache. Nothing here shows a disk, a cold file, many files, TLS, or slow
  clients.
- Without `--distinct`, every request is the same, byte for byte. `uncopied` sends the head of its
  last response again for such a request, for half a second; it checks each time whether the file is
  still the same. A new request takes the whole path through hyper.
- Servers do unequal work for the same request: `plain` parses no HTTP and sends two headers; nginx
  and axum send Date, Last-Modified and the like. `plain` and axum have no timeouts; nginx arms
  timers. nginx trusts its cache of open files for 60 s.
- axum's ServeDir reads files in tokio's blocking threads, which all share the one server CPU here.
- nginx runs without a master process. Its event loop is the same as a worker's.
- The kernel counts CPU time of processes and of the machine in clock ticks, usually of 10 ms.
- Resident memory is that of the processes. It excludes socket buffers in the kernel, for all alike.
";

/// What the report is made from.
pub(super) struct ServeReport<'a> {
    pub(super) options: &'a ServeOptions,
    pub(super) participants: &'a [ServerParticipant],
    pub(super) results: &'a ServeResults,
    pub(super) facts: &'a [(&'static str, String)],
    pub(super) congestion: &'a str,
    pub(super) files: &'a Path,
}

impl ServeReport<'_> {
    /// The page.
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
            "{} rounds; in each one, at each size, every contender in turn is under load for {} s \
             after {} s of warm-up: {} keep-alive connections, one request in flight on each{}. \
             Servers run on CPU {}, the load generator on CPU {}. Figures are medians over the \
             rounds (least–greatest); a ratio is the median of the ratios within each \
             round. A GB is 10⁹ bytes of body.",
            options.rounds,
            options.seconds.as_secs_f64(),
            options.warm_up.as_secs_f64(),
            options.connections,
            match options.distinct {
                true => ", each with a different number in its query",
                false => "",
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
                *page += &format!("{}'s configuration:\n\n", participant.contender.name);
                for line in text.lines() {
                    *page += &format!("    {line}\n");
                }
                page.push('\n');
            }
        }
    }

    /// Replaces the paths and ports of this run by placeholders.
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

    fn write_medians(&self, page: &mut String) {
        let columns = [
            LoadMeasure::Requests,
            LoadMeasure::ServerCpu,
            LoadMeasure::MachineBusy,
            LoadMeasure::RequestsPerCpuSecond,
            LoadMeasure::ServerShare,
            LoadMeasure::LoadShare,
        ];
        let names: Vec<&str> = self
            .participants
            .iter()
            .map(|participant| participant.contender.name)
            .collect();
        *page += "## Under load\n\n";
        *page += &page::medians(
            &self.results.loads,
            &columns,
            &self.options.sizes,
            &names,
            |size, index| self.results.remark(size, names[index]),
        );
    }

    /// Ours divided by every peer, and the peers divided by nginx.
    fn pairs(&self) -> Vec<(&'static str, &'static str)> {
        let names_of = |is_ours| {
            self.participants
                .iter()
                .map(|participant| participant.contender)
                .filter(move |contender| contender.ours == is_ours)
                .map(|contender| contender.name)
        };
        let ours_and_peers =
            names_of(true).flat_map(|our| names_of(false).map(move |peer| (our, peer)));
        let peers_and_nginx = names_of(false)
            .filter(|&peer| peer != "nginx" && names_of(false).any(|other| other == "nginx"))
            .map(|peer| (peer, "nginx"));
        ours_and_peers.chain(peers_and_nginx).collect()
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
            let sizes = &self.options.sizes;
            *page += &page::ratios(&self.results.loads, measure, better, sizes, &pairs);
        }
    }

    fn write_idle(&self, page: &mut String) {
        *page += &format!(
            "## Idle\n\n{} keep-alive connections, each after one request of 1 KiB, to a server \
             that has just been started.\n\n",
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

/// The raw data.
pub(super) fn raw_data(results: &ServeResults) -> String {
    let mut raw = RawData::new();
    for row in results.loads.iter() {
        let sample = &row.sample;
        let measured = [
            ("seconds", sample.seconds),
            ("requests", sample.requests),
            ("body_bytes", sample.body_bytes),
            ("server_cpu_seconds", sample.server_cpu_seconds),
            ("machine_busy_seconds", sample.machine_busy_seconds),
            ("load_cpu_seconds", sample.load_cpu_seconds),
        ];
        raw.push_measurement(row, measured, &LoadMeasure::ALL);
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
        raw.push(idle.round, idle.contender, IDLE_SIZE_BYTES, values);
    }
    raw.text()
}
